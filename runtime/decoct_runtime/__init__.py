"""Asks models that decoct exported: `open_file("model.onnx").predict("photo.jpg")`; neither torch nor decoct needed."""

from decoct_runtime.predict import Asked, Refused, open_file

__all__ = ["Asked", "Refused", "open_file"]

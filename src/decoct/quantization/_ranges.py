"""Ranges: the calibration data run through a float graph, the values of chosen tensors gathered."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decoct.errors import DataError
from decoct.models.onnx_file import FileSession, open_session
from decoct.quantization._graph import serialized
from decoct.quantization.base import Feeds
from decoct.quantization.observers import Histogram

if TYPE_CHECKING:
    import onnx


def opened(proto: onnx.ModelProto) -> FileSession:
    """A graph ready to run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(serialized(proto))
        return open_session(path)


def histograms(proto: onnx.ModelProto, tensors: Iterable[str], feeds: Feeds) -> dict[str, Histogram]:
    """What the calibration data put through these tensors of a float graph; DataError where there are no data, or
    numbers that are not finite."""
    import onnx

    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    present = {each.name for each in wide.graph.output}
    ports = {each.name for each in wide.graph.input}
    found = {name: Histogram() for name in tensors}
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in found if name not in present | ports)
    session = opened(wide)
    samples = 0
    for feed in feeds():
        arrays: Mapping[str, np.ndarray] = {**feed, **session(feed)}
        samples += len(next(iter(feed.values())))
        for name, seen in found.items():
            try:
                seen.update(arrays[name])
            except ValueError:
                raise DataError(
                    f"calibration: tensor {name!r} takes values that are not finite; look at the data"
                ) from None
    if not samples:
        raise DataError("calibration: the data are empty; give some samples of the training or validation data")
    return found

"""Targets: formats that an artifact ships in, each with write and load, so that parity is checked generically."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "target",
    {
        "onnx": "decoct.targets.onnx:Onnx",
        "openvino": "decoct.targets.openvino:OpenVINO",
        "torch_export": "decoct.targets.torch_export:TorchExport",
    },
)

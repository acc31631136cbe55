"""Files in integers beside their float files, all in integers and with `keep_float="auto"`: time and size.

    python benchmarks/scale_int8.py [--rounds 10] [--repeats 100] [--size 64] [--networks 6]

Weights are random: what is shown is speed and size, not quality. The three files of a network run in turn on one thread
with one sample; medians of the rounds, ratios to the float file of the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _shared import command, origin, parser, table, write
from torch import nn

import decoct as dc
from decoct.meters.latency import measure
from decoct.models.onnx_file import open_session

TITLES = ["network", "scheme", "float ms", "int8", "kept", "int8 bytes", "kept bytes", "stays in float"]


def depthwise(activation: type[nn.Module], width: int = 64) -> nn.Module:
    """A stem and four blocks of a depthwise 5 × 5 and a pointwise convolution."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), activation()]
    for _ in range(4):
        layers += [nn.Conv2d(width, width, 5, padding=2, groups=width), activation()]
        layers += [nn.Conv2d(width, width, 1), activation()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def mlp(width: int) -> nn.Module:
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(192, 3, 768, batch_first=True, activation="gelu")
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.LazyLinear(10))


def zoo(size: int) -> dict[str, tuple[Callable[[], nn.Module], torch.Tensor, str]]:
    import torchvision.models as tv

    image = torch.randn(8, 3, size, size)
    return {
        "depthwise 5 × 5, SiLU": (partial(depthwise, nn.SiLU), image, "int8"),
        "depthwise 5 × 5, GELU": (partial(depthwise, nn.GELU), image, "int8"),
        "depthwise 5 × 5, ReLU": (partial(depthwise, nn.ReLU), image, "int8"),
        "MLP, 3 × 64": (partial(mlp, 64), torch.randn(64, 64), "int8"),
        "MLP, 3 × 1024": (partial(mlp, 1024), torch.randn(64, 1024), "int8"),
        "MLP, 3 × 64, dynamic": (partial(mlp, 64), torch.randn(64, 64), "dynamic"),
        "ResNet-18": (tv.resnet18, image, "int8"),
        "MobileNetV3-small": (tv.mobilenet_v3_small, image, "int8"),
        "encoder, 2 × 192, dynamic": (encoder, torch.randn(8, 16, 192), "dynamic"),
    }


def row(name: str, made: tuple[Callable[[], nn.Module], torch.Tensor, str], given: argparse.Namespace) -> list[Any]:
    make, x, scheme = made
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        module(x)
    calls: dict[str, Callable[[], Any]] = {}
    records: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = {"quantize": scheme, **({"calibration": x} if scheme == "int8" else {})}
        ways: dict[str, dict[str, Any]] = {"float": {}, "int8": own, "kept": {**own, "keep_float": "auto"}}
        for way, settings in ways.items():
            path = Path(folder) / f"{way}.onnx"
            records[way] = dc.export(module, path, example=x, tolerance=1e-2, **settings)
            session = open_session(path)
            feed = {session.inputs[0].name: x[:1].numpy()}
            calls[way] = partial(session, feed)
        found = measure(calls, repeats=given.repeats, rounds=given.rounds)
    ms = {way: each.p50_ms for way, each in found.items()}
    size = {way: each["file_bytes"] / records["float"]["file_bytes"] for way, each in records.items()}
    kept = records["kept"]["quantization"]["facts"]["keep_float"]
    stays = "everything" if kept["whole"] else ", ".join(f"{len(v)} {k}" for k, v in kept["kinds"].items()) or "nothing"
    cells = [f"{ms['int8'] / ms['float']:.2f} ×", f"{ms['kept'] / ms['float']:.2f} ×"]
    cells += [f"{size['int8']:.2f} ×", f"{size['kept']:.2f} ×"]
    print(name, *cells, stays, flush=True)
    return [name, scheme, f"{ms['float']:.3g}", *cells, stays]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--repeats", type=int, default=100)
    made.add_argument("--size", type=int, default=64)
    made.add_argument("--networks", type=int, default=0, help="only so many, the first; 0 for all")
    given = made.parse_args()
    torch.set_num_threads(1)
    nets = list(zoo(given.size).items())[: given.networks or None]
    rows = [row(name, each, given) for name, each in nets]
    lines = [
        "# Files in integers beside float",
        "",
        "Times and bytes of int8, and of int8 with keep_float=auto, to float.",
    ]
    write("scale_int8", [*lines, "", *table(TITLES, rows), "", command("scale_int8", given), "", origin(), ""])


if __name__ == "__main__":
    main()

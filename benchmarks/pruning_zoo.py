"""Structured pruning at 50 % on networks of many kinds: parameters, MACs and ONNX latency before and after.

    python benchmarks/pruning_zoo.py [--ratio 0.5] [--size 64] [--repeats 100] [--threads 1] [--batch 1]

Weights are random and nothing is trained: what is shown is size and speed, not quality. Every file is verified against
torch on its example, and all outputs are finite. Latency is taken with both files in turn; medians.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _shared import RESULTS, parser, table
from torch import Tensor, nn

import decoct as dc
from decoct.meters.latency import measure
from decoct.meters.machine import machine
from decoct.models.onnx_file import open_session


class UNet(nn.Module):
    """Three levels, skips by concatenation."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.down = nn.ModuleList(self.block(a, b) for a, b in zip([3, *widths], widths))
        pairs = list(zip(widths[:0:-1], widths[-2::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.join = nn.ModuleList(self.block(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1]):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Recurrent(nn.Module):
    """Embedding, two recurrent layers, a classifier on the last state."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = (
            nn.Embedding(1000, 128),
            kind(128, 256, 2, batch_first=True),
            nn.Linear(256, 2),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(ids))[0][:, -1])


class Level(nn.Module):
    """One map of a detector's backbone."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)["0"]


def zoo(size: int) -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    import timm
    import torchvision.models as tv
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    image, ids = torch.randn(2, 3, size, size), torch.randint(1, 1000, (2, 64))
    config = {"model_type": "bert", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    bert = dc.Transformers(config={**config, "intermediate_size": 1024})
    text = dc.Interface(kind="text", shape=(64,), outputs=2, vocabulary=1000, padding=0)
    small = dc.Interface(kind="image", shape=(3, size, size), outputs=10)
    norm = {"weights": None, "norm_layer": nn.BatchNorm2d}
    return {
        "decoct small_resnet": lambda: (dc.SmallResNet().build(small), image),
        "decoct small_mobilenet": lambda: (dc.SmallMobileNet(width=32).build(small), image),
        "torchvision ResNet-18": lambda: (tv.resnet18(), image),
        "torchvision MobileNetV3-small": lambda: (tv.mobilenet_v3_small(), image),
        "torchvision ViT, 4 × 192": lambda: (tv.VisionTransformer(size, 16, 4, 4, 192, 768), image),
        "timm vit_tiny_patch16": lambda: (timm.create_model("vit_tiny_patch16_224", img_size=size), image),
        "transformers BERT, 4 × 256": lambda: (
            bert.build(text),
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        ),
        "U-Net": lambda: (UNet(), image),
        "LSTM, 2 × 256": lambda: (Recurrent(nn.LSTM), ids),
        "GRU, 2 × 256": lambda: (Recurrent(nn.GRU), ids),
        "torchvision ResNet-18 FPN backbone": lambda: (
            Level(resnet_fpn_backbone(backbone_name="resnet18", **norm)),
            image,
        ),
    }


def settled(module: nn.Module, example: Any) -> nn.Module:
    """In eval mode, batch norms with statistics of the example, the head not zero: signals do not vanish."""
    for each in module.modules():
        if isinstance(each, nn.Linear) and not each.weight.any():
            nn.init.normal_(each.weight)
    with torch.no_grad():
        for _ in range(30 if any(isinstance(each, nn.BatchNorm2d) for each in module.modules()) else 0):
            module.train()(example)
    return module.eval()


def row(name: str, module: nn.Module, example: Any, given: argparse.Namespace, folder: Path) -> list[str]:
    """Prunes, exports both, measures them in turn."""
    begin = time.perf_counter()
    smaller = dc.prune(module, example=example, ratio=given.ratio)
    seconds = time.perf_counter() - begin
    records, calls = [], {}
    for stage, net in (("before", module), ("after", smaller)):
        path = folder / f"{stage}.onnx"
        records.append(dc.export(net, path, example=example))
        session = open_session(path, threads=given.threads)
        feed = dict(example) if isinstance(example, dict) else {session.inputs[0].name: example}
        feed = {key: value[:1].repeat(given.batch, *[1] * (value.dim() - 1)).numpy() for key, value in feed.items()}
        assert all(bool(torch.from_numpy(each).isfinite().all()) for each in session(feed).values())
        calls[stage] = lambda session=session, feed=feed: session(feed)
    found = measure(calls, repeats=given.repeats)
    before, after = records
    spread = max(float(abs(each).max()) for each in calls["after"]().values())
    ratio = found["before"].p50_ms / found["after"].p50_ms
    noisy = " (noisy)" if found["before"].noisy or found["after"].noisy else ""
    return [
        name,
        f"{before['parameters'] / 1e6:.3g} M → {after['parameters'] / 1e6:.3g} M",
        f"{before['macs'] / 1e6:.3g} M → {after['macs'] / 1e6:.3g} M",
        f"{before['file_bytes'] / 1e6:.3g} MB → {after['file_bytes'] / 1e6:.3g} MB",
        f"{found['before'].p50_ms:.3g} ms → {found['after'].p50_ms:.3g} ms{noisy}",
        f"{ratio:.2f} ×",
        f"{after['verified']['max_abs_diff']:.1g} of ±{spread:.2g}",
        f"{seconds:.1f} s",
    ]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--ratio", type=float, default=0.5)
    made.add_argument("--size", type=int, default=64)
    made.add_argument("--repeats", type=int, default=100)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--out", type=Path, default=RESULTS / "pruning_zoo.md")
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    head = ["Network", "Parameters", "MACs", "File", "p50", "Faster", "Largest difference from torch", "Pruned in"]
    rows = []
    for name, build in zoo(given.size).items():
        torch.manual_seed(0)
        module, example = build()
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, settled(module, example), example, given, Path(folder)))
        print(*rows[-1], sep=" | ", flush=True)
    facts = machine()
    about = f"{facts['cpu']}, {facts['logical_cores']} cores, shared"
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    inputs = f"Pictures of {given.size} pixels, 64 tokens; batch {given.batch}, {given.threads} thread(s)."
    text = "\n\n".join(
        [
            f"# Structured pruning of many kinds of networks at {given.ratio:.0%}",
            f"{inputs} Random weights, not trained: size and speed only. Float files in ONNX Runtime, before → after.",
            "\n".join(table(head, rows)),
            f"Command: `python {shlex.join(['benchmarks/pruning_zoo.py', *sys.argv[1:]])}`",
            f"Machine: {about}. Date: {datetime.date.today().isoformat()}. Versions: {versions}.",
        ]
    )
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

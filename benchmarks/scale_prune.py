"""`dc.prune` beside torch-pruning at half of the channels: CPU time of the call, and latency of what comes out.

    python benchmarks/scale_prune.py [--rounds 3] [--size 96] [--repeats 60] [--sizes]
        [--networks resnet50,regnet_y_400mf]

Needs torch-pruning. Both take the same network with random weights, the l2 norm of groups, ratio 0.5 and multiples of
eight, and leave the classifier alone. `--sizes` times nothing and compares the shapes of all parameters, on which the
latency of a file hangs: where none differs, neither does the file but in its numbers. Rounds are interleaved, ratios
paired, all medians; files run on one thread in turn.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _shared import command, interleaved, origin, paired, parser, table, write
from pruning_zoo import UNet, settled
from torch import Tensor, nn

import decoct as dc
from decoct.meters.latency import measure
from decoct.models.onnx_file import open_session

TITLES = [
    "network",
    "torch-pruning s",
    "decoct s",
    "ratio",
    "M parameters, theirs",
    "ours",
    "ms, theirs",
    "ours",
    "ratio",
]


def zoo() -> dict[str, Callable[[], nn.Module]]:
    import timm
    import torchvision.models as tv

    return {
        "resnet18": tv.resnet18,
        "resnet50": tv.resnet50,
        "efficientnet_b0": tv.efficientnet_b0,
        "regnet_y_400mf": tv.regnet_y_400mf,
        "densenet121": tv.densenet121,
        "convnext_atto": partial(timm.create_model, "convnext_atto"),
        "mobilenetv4_conv_small": partial(timm.create_model, "mobilenetv4_conv_small"),
        "regnetx_002": partial(timm.create_model, "regnetx_002"),
        "U-Net": UNet,
    }


def theirs(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy that torch-pruning made smaller."""
    import torch_pruning as tp

    work = copy.deepcopy(module)
    last = [each for each in work.modules() if isinstance(each, nn.Linear | nn.Conv2d)][-1]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    tp.pruner.MagnitudePruner(
        work, example, importance=importance, pruning_ratio=0.5, ignored_layers=[last], round_to=8
    ).step()
    return work


def ours(module: nn.Module, example: Tensor) -> nn.Module:
    return dc.prune(module, example=example)


def latency(smaller: dict[str, nn.Module], example: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of each as a file, one sample on one thread."""
    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, module in smaller.items():
            dc.export(module, Path(folder) / f"{name}.onnx", example=example, tolerance=1e-2)
            session = open_session(Path(folder) / f"{name}.onnx")
            feed = {session.inputs[0].name: example.numpy()}
            calls[name] = lambda session=session, feed=feed: session(feed)
        return {name: each.p50_ms for name, each in measure(calls, repeats=repeats).items()}


def row(name: str, make: Callable[[], nn.Module], given: argparse.Namespace) -> list[str]:
    torch.manual_seed(0)
    example = torch.randn(1, 3, given.size, given.size)
    module = settled(make(), example.repeat(2, 1, 1, 1))
    ways = {"theirs": partial(theirs, module, example), "ours": partial(ours, module, example)}
    times = interleaved(ways, given.rounds, clock=time.process_time)
    smaller = {way: call().eval() for way, call in ways.items()}
    counts = {way: sum(each.numel() for each in net.parameters()) / 1e6 for way, net in smaller.items()}
    ms = latency(smaller, example, given.repeats)
    seconds = {way: f"{statistics.median(each):.2f}" for way, each in times.items()}
    found = [name, seconds["theirs"], seconds["ours"], paired(times["ours"], times["theirs"], "ratio").text(".2f")]
    found += [f"{counts['theirs']:.3g}", f"{counts['ours']:.3g}", f"{ms['theirs']:.3g}", f"{ms['ours']:.3g}"]
    print(*found, flush=True)
    return [*found, f"{ms['ours'] / ms['theirs']:.2f}"]


def sizes(name: str, make: Callable[[], nn.Module], given: argparse.Namespace) -> list[str]:
    torch.manual_seed(0)
    example = torch.randn(1, 3, given.size, given.size)
    module = settled(make(), example.repeat(2, 1, 1, 1))
    their, own = (
        {each: tuple(value.shape) for each, value in way(module, example).named_parameters()} for way in (theirs, ours)
    )
    other = [each for each in their if own.get(each) != their[each]]
    found = [f"`{each}` {list(their[each])}, ours {list(own.get(each, ()))}" for each in other[:1]]
    counts = [sum(math.prod(shape) for shape in each.values()) for each in (their, own)]
    print(name, *counts, len(other), flush=True)
    return [name, *(f"{each:,}" for each in counts), f"{len(other)} of {len(their)}", *(found or ["–"])]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--size", type=int, default=96)
    made.add_argument("--repeats", type=int, default=60)
    made.add_argument("--networks", default=",".join(zoo()))
    made.add_argument("--sizes", action="store_true")
    given = made.parse_args()
    torch.set_num_threads(1)
    nets = zoo()
    if given.sizes:
        titles = ["network", "parameters, theirs", "ours", "tensors of other shapes", "the first"]
        rows = [sizes(name, nets[name], given) for name in given.networks.split(",")]
        lines = ["# Sizes of pruning beside torch-pruning", ""]
        end = [command("scale_prune", given), "", origin(), ""]
        write("scale_prune_sizes", [*lines, *table(titles, rows), "", *end])
        return
    rows = [row(name, nets[name], given) for name in given.networks.split(",")]
    lines = ["# Pruning beside torch-pruning", "", "CPU seconds of one call; ratios are decoct / torch-pruning.", ""]
    write("scale_prune", [*lines, *table(TITLES, rows), "", command("scale_prune", given), "", origin(), ""])


if __name__ == "__main__":
    main()

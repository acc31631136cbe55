"""Observers compared: two small nets trained on Fashion-MNIST, quantized after training in several ways.

    python benchmarks/observers.py --data DIR [--epochs 2] [--limit 12000] [--calibration 256] [--seeds 1] [--out DIR]

Each row: test accuracy of the file, agreement with the float file, signal-to-noise ratio of its logits, the worst
difference. Calibration samples come from the training split. Writes benchmarks/results/observers.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _shared import arguments, command, origin, table, write

import decoct as dc
from decoct.training.schedules import Cosine

TITLES = (
    "observer",
    "test accuracy, %",
    "agreement with float, %",
    "SQNR of logits, dB",
    "worst difference",
    "bytes",
)


def schemes() -> dict[str, dc.Static]:
    """The ways to quantize that are compared, by the name of their row."""
    return {
        "min_max": dc.Static(),
        "percentile_99.9": dc.Static(observer="percentile", percentile=99.9),
        "percentile_99.99": dc.Static(observer="percentile", percentile=99.99),
        "entropy": dc.Static(observer="entropy"),
        "mse": dc.Static(observer="mse"),
        "mse_weights_too": dc.Static(observer="mse", weights="mse"),
        "min_max_per_tensor": dc.Static(per_channel=False),
        "min_max_symmetric": dc.Static(symmetric=True),
    }


def recipe(model: dc.Model, path: Path | None, given: argparse.Namespace) -> dc.Recipe:
    """One net, its float file, and a quantized file for each scheme."""
    train = dc.Train(
        name="student",
        inputs={"model": "net"},
        budget={"epochs": given.epochs},
        optimizer=dc.AdamW(lr=Cosine(start=5e-3, end=0.0, warmup=0.1), weight_decay=1e-3),
    )
    floating = dc.Export(name="float", inputs={"model": "student"})
    files = [
        dc.Quantize(name=_name(name), inputs={"model": "student"}, scheme=each, calibration_samples=given.calibration)
        for name, each in schemes().items()
    ]
    names = ["float", *map(_name, schemes())]
    measured = dc.Benchmark(inputs={name: name for name in names}, reference="float", repeats=50, seconds=5.0)
    return dc.Recipe(
        task=dc.ImageClassification(),
        data=dc.FashionMNIST(path=path, limit=given.limit),
        models={"net": model},
        steps=(train, floating, *files, measured),
    )


def _name(row: str) -> str:
    return f"int8_{row.replace('.', '_')}"


def rows(run: Any) -> list[tuple[Any, ...]]:
    """The rows of one net, in the order of the schemes."""
    models = {each["name"]: each for each in run.results["models"]}
    found: list[tuple[Any, ...]] = []
    for label in ("float", *schemes()):
        one = models["float" if label == "float" else _name(label)]
        verified = one["verified"]
        noise = verified.get("sqnr_db")
        shares = [100 * one["quality"]["accuracy"], 100 * one["fidelity"].get("agreement", 1)]
        signal = "–" if noise is None else f"{noise:.1f}"
        numbers = [f"{each:.2f}" for each in shares]
        found.append((label, *numbers, signal, f"{verified['max_abs_diff']:.2g}", f"{one['file_bytes']:,}"))
    return found


def main() -> None:
    given = arguments(__doc__, "observers", epochs=2, limit=12000, calibration=256, seeds=1)
    nets = {
        "small_resnet": dc.SmallResNet(width=8, stem_stride=2),
        "small_mobilenet (relu6)": dc.SmallMobileNet(activation="relu6"),
    }
    lines = ["# Observers of static quantization", ""]
    for net, model in nets.items():
        run = recipe(model, given.data, given).run(given.out / net.split()[0], seeds=given.seeds)
        lines += [f"## {net}", "", *table(TITLES, rows(run)), ""]
    write("observers", [*lines, command("observers", given), "", origin(run.results), ""])


if __name__ == "__main__":
    main()

"""Observers compared: two small nets trained on Fashion-MNIST, quantized after training in several ways.

    python benchmarks/observers.py --data DIR [--epochs 2] [--limit 12000] [--calibration 256] [--seeds 1] [--out DIR]

Each row: test accuracy of the file, agreement with the float file, signal-to-noise ratio of its logits, the worst
difference. Calibration samples come from the training split. Writes benchmarks/results/observers.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
from pathlib import Path
from typing import Any

import decoct as dc
from decoct.training.schedules import Cosine

ROOT = Path(__file__).parent.parent


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


def table(net: str, run: Any) -> list[str]:
    """The rows of one net, in the order of the schemes."""
    models = {each["name"]: each for each in run.results["models"]}
    lines = [
        f"## {net}",
        "",
        "| observer | test accuracy, % | agreement with float, % | SQNR of logits, dB | worst difference | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for label in ("float", *schemes()):
        one = models["float" if label == "float" else _name(label)]
        verified = one["verified"]
        noise = verified.get("sqnr_db")
        lines.append(
            f"| {label} | {100 * one['quality']['accuracy']:.2f} | {100 * one['fidelity'].get('agreement', 1):.2f} "
            f"| {'–' if noise is None else f'{noise:.1f}'} | {verified['max_abs_diff']:.2g} | {one['file_bytes']:,} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "observers")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=12000)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    data = given.data
    if data is None and os.environ.get("DECOCT_DATA"):
        data = Path(os.environ["DECOCT_DATA"]) / "fashion-mnist"
    nets = {
        "small_resnet": dc.SmallResNet(width=8, stem_stride=2),
        "small_mobilenet (relu6)": dc.SmallMobileNet(activation="relu6"),
    }
    lines = ["# Observers of static quantization", ""]
    runs = {}
    for net, model in nets.items():
        runs[net] = recipe(model, data, given).run(given.out / net.split()[0], seeds=given.seeds)
        lines += table(net, runs[net])
    results = dict(next(iter(runs.values())).results)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines += [
        f"Command: `python benchmarks/observers.py --epochs {given.epochs} --limit {given.limit} "
        f"--calibration {given.calibration} --seeds {given.seeds}`.",
        "",
        f"Machine: {results['machine'].get('cpu')}, shared. Date: {datetime.date.today()}. Commit: {commit.strip()}. "
        f"torch {results['versions']['torch']}.",
        "",
    ]
    target = ROOT / "benchmarks" / "results" / "observers.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

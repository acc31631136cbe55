"""Objectives at equal budget: Fashion-MNIST with few labels, one teacher, one small student, several seeds.

    python benchmarks/objectives_table.py --data DIR [--seeds 5] [--steps 500] [--labels 500] [--out DIR]

Every student starts, seed by seed, from the same weights and sees the same batches; labels reach the cross-entropy of
the labelled samples alone, the teacher speaks on all. Each row: test accuracy, mean and deviation, and the paired
differences to the student alone and to plain KD with 95 % intervals. What is done already is skipped. Writes
benchmarks/results/objectives_table.md.
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
LAST = {"layer3": "layer3"}
ALL = {f"layer{i}": f"layer{i}" for i in (1, 2, 3)}


def objectives() -> dict[str, Any]:
    """The lessons that are compared, by the name of their row; weights are those of the papers or near them."""
    ce = 0.1 * dc.CrossEntropy()
    kd = 0.9 * dc.KD(temperature=4)
    return {
        "kd": kd + ce,
        "kd_cold": 0.9 * dc.KD(temperature=1) + ce,
        "kd_standardized": 0.9 * dc.KD(temperature=2, standardize=True) + ce,
        "logit_mse": 0.5 * dc.LogitMSE() + ce,
        "soft_cross_entropy": dc.SoftCrossEntropy() + ce,
        "dist": dc.DIST(temperature=4) + ce,
        "jsd": 10 * dc.JSD() + ce,
        "reverse_kl": 3 * dc.ReverseKL() + ce,
        "hint": dc.Hint(layers=LAST) + dc.CrossEntropy(),
        "attention_transfer": 1000 * dc.AttentionTransfer(layers=ALL) + dc.CrossEntropy(),
        "similarity_preserving": 3000 * dc.SimilarityPreserving(layers=LAST) + dc.CrossEntropy(),
        "rkd_distance": 25 * dc.RKDDistance(layers=LAST) + dc.CrossEntropy(),
        "pkt": 3e4 * dc.PKT(layers=LAST) + dc.CrossEntropy(),
        "kd_and_attention": kd + ce + 100 * dc.AttentionTransfer(layers=ALL),
        "kd_and_hint": kd + ce + 0.3 * dc.Hint(layers=LAST),
        "kd_and_similarity": kd + ce + 1000 * dc.SimilarityPreserving(layers=LAST),
    }


def recipe(path: Path | None, steps: int, labels: int) -> dc.Recipe:
    """One teacher, the student alone, and a distilled student for each objective."""
    optimizer = dc.AdamW(lr=Cosine(start=5e-3, end=0.0, warmup=0.1), weight_decay=1e-3)
    shared = {"budget": {"steps": steps}, "batch_size": 128, "labels": labels, "optimizer": optimizer}
    teacher = dc.Train(
        name="teacher",
        inputs={"model": "large"},
        budget={"epochs": 5},
        optimizer=dc.AdamW(lr=Cosine(start=3e-3, end=0.0, warmup=0.1), weight_decay=1e-2),
    )
    alone = dc.Train(name="student_alone", inputs={"model": "small"}, **shared)
    taught = [
        dc.Distill(name=name, inputs={"model": "small", "teacher": "teacher"}, objective=objective, **shared)
        for name, objective in objectives().items()
    ]
    names = ["teacher", "student_alone", *objectives()]
    pairs = [(name, other) for name in objectives() for other in ("student_alone", "kd") if name != other]
    measured = dc.Benchmark(name="benchmark", inputs={name: name for name in names}, compare=tuple(pairs), repeats=20)
    return dc.Recipe(
        task=dc.ImageClassification(),
        data=dc.FashionMNIST(path=path),
        models={"large": dc.SmallResNet(width=24, stem_stride=2), "small": dc.SmallResNet(width=4, stem_stride=2)},
        steps=(teacher, alone, *taught, measured),
    )


def difference(results: dict[str, Any], name: str, than: str) -> str:
    """The paired difference in points with its interval."""
    for each in results["comparisons"]:
        if (each["better"], each["than"]) == (name, than):
            if each["low"] is None:
                return f"{100 * each['mean']:+.2f}"
            return f"{100 * each['mean']:+.2f} ({100 * each['low']:+.2f} to {100 * each['high']:+.2f})"
    return "–"


def summary(results: dict[str, Any], command: str) -> str:
    """The Markdown table, best first."""
    models = {each["name"]: each for each in results["models"]}
    order = sorted(models, key=lambda name: -models[name]["quality"]["accuracy"])
    lines = [
        "# Objectives at equal budget",
        "",
        "| objective | test accuracy, % | against alone, points (95 %) | against kd, points (95 %) |",
        "|---|---|---|---|",
    ]
    for name in order:
        one = models[name]
        spread = one.get("quality_sd", {}).get("accuracy")
        text = f"{100 * one['quality']['accuracy']:.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
        lines.append(
            f"| {name} | {text} | {difference(results, name, 'student_alone')} | {difference(results, name, 'kd')} |"
        )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    seeds = len(results["seeds"])
    small, large = models["kd"]["parameters"], models["teacher"]["parameters"]
    lines += [
        "",
        f"Teacher {large:,} parameters, student {small:,}; {seeds} seeds.",
        "",
        f"Command: `python benchmarks/objectives_table.py {command}`.",
        "",
        f"Machine: {results['machine'].get('cpu')}, shared. Date: {datetime.date.today()}. Commit: {commit.strip()}. "
        f"torch {results['versions']['torch']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "objectives_table")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--labels", type=int, default=500)
    given = parser.parse_args()
    data = given.data
    if data is None and os.environ.get("DECOCT_DATA"):
        data = Path(os.environ["DECOCT_DATA"]) / "fashion-mnist"

    def watch(event: Any) -> None:
        if event["event"] in ("done", "skipped"):
            print(event["step"], event["seed"], event["event"], event.get("scores", ""), flush=True)

    run = recipe(data, given.steps, given.labels).run(given.out, seeds=given.seeds, watch=watch)
    command = f"--seeds {given.seeds} --steps {given.steps} --labels {given.labels}"
    target = ROOT / "benchmarks" / "results" / "objectives_table.md"
    target.parent.mkdir(exist_ok=True)
    text = summary(dict(run.results), command)
    target.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

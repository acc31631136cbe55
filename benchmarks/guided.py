"""Compression under a teacher against compression under labels: Fashion-MNIST with few labels, several seeds.

    python benchmarks/guided.py --data DIR [--seeds 3] [--steps 400] [--labels 500] [--out DIR]

One student, distilled on all training images, is compressed in each way twice from the same weights, with the same
budget and order of samples: guided (9 KD at temperature 1 + 0.1 cross-entropy on all images, labels for few, as
objectives_table.py found best for KD) and plain (cross-entropy on the labelled few). Channels pruned at 50, 70, 90 %;
quantization-aware training at 8 and 4 bits, with learned and with observed step sizes; 8 bits after training beside
it. Accuracy on test data, paired differences with 95 % intervals. What is done already is skipped. Writes
benchmarks/results/guided.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _shared import accuracy, arguments, command, difference, origin, table, watch, write

import decoct as dc
from decoct.training.schedules import Cosine

RATIOS = (50, 70, 90)


def schemes() -> dict[str, tuple[type[Any], Any]]:
    """By the name of a row, the step and its scheme."""
    found: dict[str, tuple[type[Any], Any]] = {}
    for percent in RATIOS:
        found[f"pruned_{percent}"] = (dc.Prune, dc.Channels(ratio=percent / 100, round_to=2))
    for bits in (8, 4):
        for method in ("lsq", "ste"):
            scheme = dc.FakeQuantize(weight_bits=bits, activation_bits=bits, method=method)
            found[f"qat_{bits}_{method}"] = (dc.QAT, scheme)
    return found


def recipe(path: Path | None, steps: int, labels: int) -> dc.Recipe:
    """Teacher, student, and each compression of it, guided and plain."""
    adam = dc.AdamW(lr=Cosine(start=5e-3, end=0.0, warmup=0.1), weight_decay=1e-3)
    rates = {dc.Prune: 5e-3, dc.QAT: 5e-4}
    first = 0.9 * dc.KD(temperature=4) + 0.1 * dc.CrossEntropy()
    guided = 9 * dc.KD(temperature=1) + 0.1 * dc.CrossEntropy()
    teacher = dc.Train(
        name="teacher",
        inputs={"model": "large"},
        budget={"epochs": 5},
        optimizer=dc.AdamW(lr=Cosine(start=3e-3, end=0.0, warmup=0.1), weight_decay=1e-2),
    )
    student = dc.Distill(
        name="student",
        inputs={"model": "small", "teacher": "teacher"},
        objective=first,
        budget={"epochs": 3},
        optimizer=adam,
    )
    made: list[Any] = [teacher, student]
    for name, (step, scheme) in schemes().items():
        shared = {"scheme": scheme, "labels": labels, "budget": {"steps": steps}}
        shared["optimizer"] = dc.AdamW(lr=Cosine(start=rates[step], end=0.0, warmup=0.1), weight_decay=1e-3)
        both = {"model": "student", "teacher": "teacher"}
        made.append(step(name=f"{name}_guided", inputs=both, objective=guided, **shared))
        made.append(step(name=f"{name}_plain", inputs={"model": "student"}, **shared))
    made.append(dc.Quantize(name="ptq_8", inputs={"model": "student"}))
    names = [each.name for each in made]
    pairs = [(f"{name}_guided", f"{name}_plain") for name in schemes()]
    pairs += [("qat_8_lsq_guided", "ptq_8"), ("qat_4_lsq_guided", "qat_4_ste_guided")]
    measured = dc.Benchmark(
        name="benchmark", inputs={name: name for name in names}, compare=tuple(pairs), repeats=10, seconds=5.0
    )
    return dc.Recipe(
        task=dc.ImageClassification(),
        data=dc.FashionMNIST(path=path),
        models={"large": dc.SmallResNet(width=24, stem_stride=2), "small": dc.SmallResNet(width=12, stem_stride=2)},
        steps=(*made, measured),
    )


def summary(results: dict[str, Any], given: argparse.Namespace) -> list[str]:
    """The Markdown page."""
    parameters = {each["name"]: each["parameters"] for each in results["models"]}
    titles = ["compressed", "parameters", "guided, %", "plain, %", "guided − plain, points (95 %)"]
    rows = []
    for name in schemes():
        guided, plain = f"{name}_guided", f"{name}_plain"
        both = (accuracy(results, guided), accuracy(results, plain))
        rows.append((name, f"{parameters[guided]:,}", *both, difference(results, guided, plain)))
    return [
        "# Compression guided by the teacher, and by labels alone",
        "",
        *table(titles, rows),
        "",
        f"Teacher {accuracy(results, 'teacher')} % ({parameters['teacher']:,} parameters), float student "
        f"{accuracy(results, 'student')} % ({parameters['student']:,}), 8 bits after training "
        f"{accuracy(results, 'ptq_8')} %.",
        "",
        f"- 8 bits, trained and guided against after training: {difference(results, 'qat_8_lsq_guided', 'ptq_8')}.",
        f"- 4 bits guided, learned step size against observed: "
        f"{difference(results, 'qat_4_lsq_guided', 'qat_4_ste_guided')}.",
        f"- {len(results['seeds'])} seeds.",
        "",
        command("guided", given),
        "",
        origin(results),
        "",
    ]


def main() -> None:
    given = arguments(__doc__, "guided", seeds=3, steps=400, labels=500)
    run = recipe(given.data, given.steps, given.labels).run(given.out, seeds=given.seeds, watch=watch)
    write("guided", summary(dict(run.results), given))


if __name__ == "__main__":
    main()

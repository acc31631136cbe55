"""Objectives at equal budget: Fashion-MNIST with few labels, one teacher, one small student, several seeds.

    python benchmarks/objectives_table.py --data DIR [--seeds 5] [--steps 500] [--labels 500] [--out DIR]

Every student starts, seed by seed, from the same weights and sees as many batches. Rows on all samples: the teacher
speaks on all, labels reach the cross-entropy of the labelled ones alone. Rows "... on labels": the labelled samples
alone, as the student alone has them. The weight of each row's term is the best of three, a tenth, one and ten times the
one below, by validation accuracy under a seed of its own. Each row: test accuracy, mean and deviation, and the paired
differences to the student alone and to plain KD with 95 % intervals. What is done already is skipped. Writes
benchmarks/results/objectives_table.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _shared import accuracy, arguments, command, difference, origin, table, watch, write

import decoct as dc
from decoct.training.schedules import Cosine

LAST = {"layer3": "layer3"}
ALL = {f"layer{i}": f"layer{i}" for i in (1, 2, 3)}
FACTORS = (0.1, 1.0, 10.0)
TUNING_SEED = 100


def objectives() -> dict[str, Any]:
    """What is compared, by the name of its row: a function of the factor on its term's weight."""
    ce = 0.1 * dc.CrossEntropy()
    kd = 0.9 * dc.KD(temperature=4) + ce
    whole = dc.CrossEntropy()
    return {
        "kd": lambda w: w * 0.9 * dc.KD(temperature=4) + ce,
        "kd_cold": lambda w: w * 0.9 * dc.KD(temperature=1) + ce,
        "kd_standardized": lambda w: w * 0.9 * dc.KD(temperature=2, standardize=True) + ce,
        "dkd": lambda w: w * 0.2 * dc.DKD(temperature=4) + ce,
        "logit_mse": lambda w: w * 0.05 * dc.LogitMSE() + ce,
        "dist": lambda w: w * dc.DIST(temperature=4) + ce,
        "jsd": lambda w: w * 10 * dc.JSD() + ce,
        "reverse_kl": lambda w: w * 3 * dc.ReverseKL() + ce,
        "kd_and_attention": lambda w: kd + w * 10 * dc.AttentionTransfer(layers=ALL),
        "kd_and_hint": lambda w: kd + w * 0.3 * dc.Hint(layers=LAST),
        "kd_and_similarity": lambda w: kd + w * 100 * dc.SimilarityPreserving(layers=LAST),
        "kd_and_rkd": lambda w: kd + w * dc.RKDDistance(layers=LAST),
        "hint_on_labels": lambda w: w * 0.3 * dc.Hint(layers=LAST) + whole,
        "attention_on_labels": lambda w: w * 10 * dc.AttentionTransfer(layers=ALL) + whole,
        "similarity_on_labels": lambda w: w * 100 * dc.SimilarityPreserving(layers=LAST) + whole,
        "rkd_on_labels": lambda w: w * dc.RKDDistance(layers=LAST) + whole,
        "pkt_on_labels": lambda w: w * 1e3 * dc.PKT(layers=LAST) + whole,
    }


def recipe(
    path: Path | None, steps: int, labels: int, factors: Mapping[str, Sequence[float]], *, measure: bool
) -> dc.Recipe:
    """One teacher, the student alone, and a distilled student for each objective and factor."""
    optimizer = dc.AdamW(lr=Cosine(start=5e-3, end=0.0, warmup=0.1), weight_decay=1e-3)
    shared = {"budget": {"steps": steps}, "batch_size": 128, "labels": labels, "optimizer": optimizer}
    teacher = dc.Train(
        name="teacher",
        inputs={"model": "large"},
        budget={"epochs": 5},
        optimizer=dc.AdamW(lr=Cosine(start=3e-3, end=0.0, warmup=0.1), weight_decay=1e-2),
    )
    alone = dc.Train(name="student_alone", inputs={"model": "small"}, **shared)
    distilled = [
        dc.Distill(
            name=name if measure else f"{name}-{place}",
            inputs={"model": "small", "teacher": "teacher"},
            objective=objectives()[name](factor),
            samples="labelled" if name.endswith("_on_labels") else "all",
            **shared,
        )
        for name, tried in factors.items()
        for place, factor in enumerate(tried)
    ]
    names = ["teacher", "student_alone", *factors]
    pairs = [(name, other) for name in factors for other in ("student_alone", "kd") if name != other]
    measured = dc.Benchmark(name="benchmark", inputs={name: name for name in names}, compare=tuple(pairs), repeats=20)
    return dc.Recipe(
        seed=0 if measure else TUNING_SEED,
        task=dc.ImageClassification(),
        data=dc.FashionMNIST(path=path),
        models={"large": dc.SmallResNet(width=24, stem_stride=2), "small": dc.SmallResNet(width=4, stem_stride=2)},
        steps=(teacher, alone, *distilled, *([measured] if measure else [])),
    )


def best_factors(run: Any) -> dict[str, float]:
    """By row the factor of the best validation accuracy."""
    found = {}
    for name in objectives():
        scores = [run.artifact(f"{name}-{place}").scores["accuracy"] for place in range(len(FACTORS))]
        found[name] = FACTORS[scores.index(max(scores))]
    return found


def summary(results: dict[str, Any], given: argparse.Namespace, factors: Mapping[str, float]) -> list[str]:
    """The Markdown page, best first."""
    models = {each["name"]: each for each in results["models"]}
    order = sorted(models, key=lambda name: -models[name]["quality"]["accuracy"])
    titles = ["objective", "factor", "test accuracy, %", "against alone, points (95 %)", "against kd, points (95 %)"]
    rows = []
    for name in order:
        both = [difference(results, name, than) for than in ("student_alone", "kd")]
        rows.append((name, factors.get(name, "–"), accuracy(results, name), *both))
    small, large = models["kd"]["parameters"], models["teacher"]["parameters"]
    return [
        "# Objectives at equal budget",
        "",
        *table(titles, rows),
        "",
        f"Teacher {large:,} parameters, student {small:,}; {len(results['seeds'])} seeds.",
        "",
        command("objectives_table", given),
        "",
        origin(results),
        "",
    ]


def main() -> None:
    given = arguments(__doc__, "objectives_table", seeds=5, steps=500, labels=500)
    every = dict.fromkeys(objectives(), FACTORS)
    tried = recipe(given.data, given.steps, given.labels, every, measure=False)
    factors = best_factors(tried.run(given.out / "tuning", watch=watch))
    chosen = {name: (each,) for name, each in factors.items()}
    compared = recipe(given.data, given.steps, given.labels, chosen, measure=True)
    run = compared.run(given.out / "table", seeds=given.seeds, watch=watch)
    write("objectives_table", summary(dict(run.results), given, factors))


if __name__ == "__main__":
    main()

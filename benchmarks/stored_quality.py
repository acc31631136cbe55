"""Students of a stored teacher against students of the live one: Fashion-MNIST with few labels, several seeds.

    python benchmarks/stored_quality.py --data DIR [--seeds 5] [--steps 600] [--labels 500] [--out DIR]

One teacher, one student, one order of samples a seed, eight fixed views of each image. The teacher answers live, or
from stores that keep its logits in float32 (nothing is lost), float16, uint8, or the three or five largest
probabilities of ten with the rest in one bucket or spread evenly. Accuracy on test data, paired differences to the live
teacher with 95 % intervals, and what each store takes. What is done already is skipped. Writes
benchmarks/results/stored_quality.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _shared import accuracy, arguments, command, difference, origin, table, watch, write

import decoct as dc
from decoct.training.schedules import Cosine

VIEWS = 8
KEPT: dict[str, Any] = {
    "float32": dc.DenseCodec(dtype="float32"),
    "float16": dc.DenseCodec(dtype="float16"),
    "uint8": dc.DenseCodec(dtype="uint8"),
    "top_3_bucket": dc.TopKCodec(k=3, tail="bucket"),
    "top_3_uniform": dc.TopKCodec(k=3, tail="uniform"),
    "top_5_bucket": dc.TopKCodec(k=5, tail="bucket"),
    "top_5_uniform": dc.TopKCodec(k=5, tail="uniform"),
}


def recipe(path: Path | None, steps: int, labels: int) -> dc.Recipe:
    """Teacher, stores, a student of each and of the live teacher."""
    adam = dc.AdamW(lr=Cosine(start=5e-3, end=0.0, warmup=0.1), weight_decay=1e-3)
    teacher = dc.Train(
        name="teacher",
        inputs={"model": "large"},
        budget={"epochs": 4},
        optimizer=dc.AdamW(lr=Cosine(start=3e-3, end=0.0, warmup=0.1), weight_decay=1e-2),
    )
    shared: dict[str, Any] = {
        "objective": 0.9 * dc.KD(temperature=4) + 0.1 * dc.CrossEntropy(),
        "labels": labels,
        "budget": {"steps": steps},
        "optimizer": adam,
    }
    made: list[Any] = [teacher]
    made += [
        dc.Label(name=f"labels_{name}", inputs={"teacher": "teacher"}, keep=each, views=VIEWS)
        for name, each in KEPT.items()
    ]
    made.append(
        dc.Train(name="alone", inputs={"model": "small"}, **{k: v for k, v in shared.items() if k != "objective"})
    )
    made.append(dc.Distill(name="live", inputs={"model": "small", "teacher": "teacher"}, views=VIEWS, **shared))
    for name in KEPT:
        inputs = {"model": "small", "teacher": f"labels_{name}"}
        made.append(dc.Distill(name=name, inputs=inputs, **shared))
    measured = dc.Benchmark(
        name="benchmark",
        inputs={name: name for name in ("teacher", "alone", "live", *KEPT)},
        compare=tuple((name, "live") for name in (*KEPT, "alone")),
        repeats=10,
        seconds=5.0,
    )
    return dc.Recipe(
        task=dc.ImageClassification(augment=dc.Augment(flip=True, crop=2)),
        data=dc.FashionMNIST(path=path),
        models={"large": dc.SmallResNet(width=24, stem_stride=2), "small": dc.SmallResNet(width=12, stem_stride=2)},
        steps=(*made, measured),
    )


def summary(results: dict[str, Any], given: argparse.Namespace) -> list[str]:
    """The Markdown page."""
    stores = {each["step"].removeprefix("labels_"): each["statistics"] for each in results["stores"]}
    titles = ["teacher", "accuracy, %", "minus live, points (95 %)", "bytes a view", "KL lost, nats", "kept mass"]
    rows = [("live", accuracy(results, "live"), "", "", "", "")]
    for name in KEPT:
        found = stores[name]
        size, lost, mass = (f"{found[each]:.3g}" for each in ("bytes_per_sample", "kl", "kept_mass"))
        rows.append(
            (name.replace("_", " "), accuracy(results, name), difference(results, name, "live"), size, lost, mass)
        )
    rows.append(("none: labels alone", accuracy(results, "alone"), difference(results, "alone", "live"), "", "", ""))
    return [
        "# Students of a stored teacher against students of the live one",
        "",
        *table(titles, rows),
        "",
        f"Teacher {accuracy(results, 'teacher')} %; {len(results['seeds'])} seeds. The KL of a bucket is that over "
        "what is kept, its k classes and the bucket. Bytes of a view are those of the whole store, its index included.",
        "",
        command("stored_quality", given),
        "",
        origin(results),
        "",
    ]


def main() -> None:
    given = arguments(__doc__, "stored_quality", seeds=5, steps=600, labels=500)
    run = recipe(given.data, given.steps, given.labels).run(given.out, seeds=given.seeds, watch=watch)
    write("stored_quality", summary(dict(run.results), given))


if __name__ == "__main__":
    main()

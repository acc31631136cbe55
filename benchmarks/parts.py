"""Codebooks, rewriting and integers on one student: what each costs and gives, on the files. Fashion-MNIST.

    python benchmarks/parts.py --data DIR [--seeds 3] [--steps 200] [--out DIR]

The teacher and the distilled student are those of benchmarks/guided.py; each row starts from that student, and those
that train do so under the teacher for `steps` optimizer steps. Bytes, MACs, latency (ONNX Runtime, one thread, one
sample, interleaved) and accuracy are those of the exported files, mean and deviation over seeds. The picture shows what
the int8 file loses when one layer alone is in int8. Writes benchmarks/results/parts.md and
docs/assets/sensitivity.svg.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import guided
from _shared import ROOT, accuracy, arguments, command, origin, table, watch, write

import decoct as dc
from decoct.training.schedules import Cosine


def rows(steps: int) -> dict[str, Any]:
    """By the name of a row, the step that makes it; None for the student as it is."""
    shared = {
        "inputs": {"model": "student", "teacher": "teacher"},
        "objective": 0.9 * dc.KD(temperature=4) + 0.1 * dc.CrossEntropy(),
        "budget": {"steps": steps},
        "optimizer": dc.AdamW(lr=Cosine(start=2e-3, end=0.0, warmup=0.1), weight_decay=1e-3),
    }
    return {
        "student": None,
        "codebook_256": dc.Share(name="codebook_256", scheme=dc.Codebook(clusters=256), **shared),
        "codebook_16": dc.Share(name="codebook_16", scheme=dc.Codebook(clusters=16), **shared),
        "separable": dc.Rewrite(name="separable", scheme=dc.Separable(), **shared),
        "separable_by_layer": dc.Rewrite(
            name="separable_by_layer", scheme=dc.Separable(), recover=dc.LayerByLayer(), **shared
        ),
        "separable_rank_2": dc.Rewrite(name="separable_rank_2", scheme=dc.Separable(rank=2), **shared),
        "low_rank_half": dc.Rewrite(name="low_rank_half", scheme=dc.LowRank(ratio=0.5), **shared),
    }


def recipe(path: Path | None, steps: int) -> dc.Recipe:
    """Teacher, student, each row, and all their files."""
    base = guided.recipe(path, steps, 500)
    made = [each for each in rows(steps).values() if each is not None]
    exports = [dc.Export(name=f"{name}_onnx", inputs={"model": name}) for name in ("teacher", *rows(steps))]
    integers = [
        dc.Quantize(name="int8", inputs={"model": "student"}, scheme=dc.Static(observer="mse", sensitivity=True)),
        dc.Quantize(name="separable_int8", inputs={"model": "separable"}, scheme=dc.Static(observer="mse")),
    ]
    inputs = {each.name.removesuffix("_onnx"): each.name for each in [*exports, *integers]}
    measured = dc.Benchmark(name="benchmark", inputs=inputs, compare=())
    return base.replace(steps=(*base.steps[:2], *made, *exports, *integers, measured))


def summary(results: dict[str, Any], given: argparse.Namespace) -> list[str]:
    """The Markdown page."""
    titles = ["file", "accuracy, %", "bytes", "parameters", "MACs", "p50, µs"]
    rows = []
    for each in results["models"]:
        noisy = " (noisy)" if each["latency"]["noisy"] else ""
        counts = [f"{each[key]:,}" for key in ("file_bytes", "parameters", "macs")]
        p50 = f"{1e3 * each['latency']['p50_ms']:.1f}{noisy}"
        rows.append((each["name"], accuracy(results, each["name"]), *counts, p50))
    return [
        "# Codebooks, rewriting, integers",
        "",
        *table(titles, rows),
        "",
        "![What one layer alone costs in int8](../../docs/assets/sensitivity.svg)",
        "",
        f"{len(results['seeds'])} seeds. {command('parts', given)}",
        "",
        origin(results),
        "",
    ]


def picture(costs: list[dict[str, Any]]) -> str:
    """SQNR of the logits with one layer alone in int8, as bars; the shortest bar is the layer that costs most."""
    import altair as alt
    import vl_convert

    data = [{"layer": each["layer"], "sqnr": each["alone_db"]} for each in costs]
    chart = alt.Chart(alt.Data(values=data), width=420).mark_bar()
    drawn = chart.encode(
        x=alt.X("sqnr:Q", title="SQNR of the logits, dB: one layer alone in int8"),
        y=alt.Y("layer:N", title=None, sort="x"),
    )
    return str(vl_convert.vegalite_to_svg(drawn.to_dict()))


def main() -> None:
    given = arguments(__doc__, "parts", seeds=3, steps=200)
    run = recipe(given.data, given.steps).run(given.out, seeds=given.seeds, watch=watch)
    found = run.artifact("int8").json("exported.json")["quantization"]["facts"]
    (ROOT / "docs" / "assets" / "sensitivity.svg").write_text(picture(found["sensitivity"]), encoding="utf-8")
    write("parts", summary(dict(run.results), given))


if __name__ == "__main__":
    main()

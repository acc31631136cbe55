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
import datetime
import os
import subprocess
from pathlib import Path
from typing import Any

import guided

import decoct as dc
from decoct.training.schedules import Cosine

ROOT = Path(__file__).parent.parent


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


def summary(results: dict[str, Any], command: str) -> str:
    """The Markdown page."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines = [
        "# Codebooks, rewriting, integers",
        "",
        "| file | accuracy, % | bytes | parameters | MACs | p50, µs |",
        "|---|---|---|---|---|---|",
    ]
    for each in results["models"]:
        lines.append(
            f"| {each['name']} | {guided.accuracy(results, each['name'])} | {each['file_bytes']:,} "
            f"| {each['parameters']:,} | {each['macs']:,} | {1e3 * each['latency']['p50_ms']:.1f}"
            + (" (noisy)" if each["latency"]["noisy"] else "")
            + " |"
        )
    lines += [
        "",
        "![What one layer alone costs in int8](../../docs/assets/sensitivity.svg)",
        "",
        f"{len(results['seeds'])} seeds. Command: `python benchmarks/parts.py {command}`.",
        "",
        f"Machine: {results['machine'].get('cpu')}, shared. Date: {datetime.date.today()}. Commit: {commit.strip()}. "
        f"torch {results['versions']['torch']}.",
        "",
    ]
    return "\n".join(lines)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "parts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    data = given.data
    if data is None and os.environ.get("DECOCT_DATA"):
        data = Path(os.environ["DECOCT_DATA"]) / "fashion-mnist"

    def watch(event: Any) -> None:
        if event["event"] in ("done", "skipped"):
            print(event["step"], event["seed"], event["event"], event.get("scores", ""), flush=True)

    run = recipe(data, given.steps).run(given.out, seeds=given.seeds, watch=watch)
    folder = ROOT / "benchmarks" / "results"
    found = run.artifact("int8").json("exported.json")["quantization"]["facts"]
    (ROOT / "docs" / "assets" / "sensitivity.svg").write_text(picture(found["sensitivity"]), encoding="utf-8")
    text = summary(dict(run.results), f"--seeds {given.seeds} --steps {given.steps}")
    (folder / "parts.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

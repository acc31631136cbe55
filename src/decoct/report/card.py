"""The model card of a run: what the model is, what it was made from, how good it is and how to run it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from decoct.artifact import read_json
from decoct.errors import IntegrityError
from decoct.report.chain import teacher_of
from decoct.report.limits import limits_view
from decoct.report.measured import facts, step_views
from decoct.report.records import ModelRecord
from decoct.report.run_manifest import write_page_file
from decoct.report.runs import Run, read_run
from decoct.report.sentence import sentences, shipped_of
from decoct.report.table import rows

EXPORTED, MANIFEST = "exported.json", "manifest.json"
SMALL_SAMPLE = 1000
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~&])")


def write_card(folder: Path, out: Path) -> Path:
    """Writes the model card of the run in `folder` to `out` (Markdown), whole or not at all, and returns its path.

    DataError if the folder is no finished run, IntegrityError if its records are damaged.
    """
    write_page_file(Path(out), card(read_run(Path(folder))))
    return Path(out)


def card(run: Run) -> str:
    """The card as Markdown."""
    environment = Environment(
        loader=PackageLoader("decoct.report", "."),
        autoescape=False,  # noqa: S701  Markdown: every value goes through `md` or `fenced`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": md, "fenced": fenced}
    results = run.results
    model = shipped_of(results)
    figures = rows(results)
    return environment.get_template("card.md.jinja").render(
        run=run,
        results=results,
        model=model,
        teacher=teacher_of(results),
        sentences=sentences(results),
        headings=list(figures[0]) if figures else [],
        figures=figures,
        limits=limits(run, model),
        held=limits_view(results),
        snippet=snippet(run.folder, model) if model else "",
        asking=asking(run.folder, model) if model else "",
        lineage=lineage(run.folder, model) if model else [],
        facts=facts(results),
        steps=step_views(results.steps),
    )


def md(text: object) -> str:
    """Text with no meaning in Markdown or HTML, on one line.

    >>> md("a_b <script> | c")
    'a\\\\_b &lt;script&gt; \\\\| c'
    """
    plain = " ".join(str(text).split())
    escaped = _SPECIAL.sub(r"\\\1", plain)
    return escaped.replace("\\&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")


def fenced(text: str, language: str = "") -> str:
    """Text as a code block whose fence is longer than any in it.

    >>> print(fenced("a = 1", "python"))
    ```python
    a = 1
    ```
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def limits(run: Run, model: ModelRecord | None) -> list[str]:
    """What the figures do not say, sentence by sentence."""
    results = run.results
    data = str(results.data.get("use", "")) or "the data above"
    found = [f"Quality is known on {data} only; on other data measure again."]
    seeds = len(results.seeds)
    if seeds <= 1:
        found.append("The figures come from one seed: differences between models may be chance.")
    if model and model.n and model.n < SMALL_SAMPLE and results.task.item == "sample":
        points = f"{100 / model.n:.2f} points"
        found.append(f"The evaluation has {model.n} samples: one answer more or less moves a share by {points}.")
    if model and model.latency:
        found.append("Latency holds for the machine, runtime, threads and batch named below.")
    if model and not model.calibration:
        found.append("Calibration was not measured: do not read the outputs as probabilities.")
    return found


def asking(folder: Path, model: ModelRecord) -> str:
    """The commands that ask the model's file about a photo, a sentence or rows; empty where none can be asked."""
    place = (folder / (model.artifact or "")).parent
    if not model.artifact or not (place / "predict.py").is_file():
        return ""
    kind = _json(place / "manual.json").get("kind")
    asked = {"image": "photo.jpg", "text": '"a sentence"', "tabular": "rows.csv"}.get(str(kind), "INPUT")
    where = shlex.quote(str(Path(model.artifact).parent))
    return f"python {where}/predict.py {asked}   # needs no decoct\ndecoct predict {where} {asked}"


def snippet(folder: Path, model: ModelRecord) -> str:
    """Python that runs the model's file in ONNX Runtime; empty where the model has none."""
    if not model.artifact or not model.artifact.endswith(".onnx"):
        return ""
    exported = _json((folder / model.artifact).parent / EXPORTED)
    feeds = inputs(exported)
    names = ", ".join(f"{json.dumps(name)}: {_array(shape, kind)}" for name, shape, kind in feeds)
    lines = ["import numpy as np", "import onnxruntime", ""]
    options = ""
    if "audit" in exported:
        options = ", options"
        lines += [
            "options = onnxruntime.SessionOptions()",
            "# without it int8 products overflow on x64 processors that lack VNNI",
            'options.add_session_config_entry("session.x64quantprecision", "1")',
        ]
    lines += [f"session = onnxruntime.InferenceSession({json.dumps(model.artifact)}{options})"]
    if feeds:
        lines += ["# raw inputs: the preprocessing is inside the file; replace the zeros", f"inputs = {{{names}}}"]
    else:
        lines += [
            "print([(each.name, each.shape, each.type) for each in session.get_inputs()])",
            'inputs = {session.get_inputs()[0].name: np.load("input.npy")}',
        ]
    return "\n".join([*lines, "outputs = session.run(None, inputs)"])


def inputs(exported: Mapping[str, Any]) -> list[tuple[str, list[Any], str]]:
    """Name, shape and type of each input that exported.json records, as a list or as a mapping by name."""
    recorded = exported.get("inputs")
    if isinstance(recorded, dict):
        recorded = [{"name": name, **(value if isinstance(value, dict) else {})} for name, value in recorded.items()]
    found = []
    for each in recorded if isinstance(recorded, list) else []:
        entry = {"name": each} if isinstance(each, str) else each
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            shape = entry.get("shape")
            found.append(
                (
                    entry["name"],
                    shape if isinstance(shape, list) else [],
                    str(entry.get("type") or entry.get("dtype") or ""),
                )
            )
    return found


def lineage(folder: Path, model: ModelRecord) -> list[tuple[str, str]]:
    """Where the model's artifact comes from: its key and those of its inputs by role."""
    manifest = _json(folder / model.path / MANIFEST) if model.path else {}
    found = [("key", str(manifest["key"]))] if manifest.get("key") else []
    origins = manifest.get("lineage")
    return found + [(str(role), str(key)) for role, key in (origins.items() if isinstance(origins, dict) else ())]


def _array(shape: list[Any], kind: str) -> str:
    sizes = [size if isinstance(size, int) and size > 0 else 1 for size in shape]
    known = re.search(r"(float|int|uint)\d+|bool", kind)
    return f"np.zeros({tuple(sizes)!r}, np.{known.group() if known else 'float32'})" if sizes else "..."


def _json(path: Path) -> dict[str, Any]:
    """A JSON object beside the records; empty where it is absent or damaged, since the card can do without."""
    try:
        found: dict[str, Any] = read_json(path, dict[str, Any])
    except (OSError, IntegrityError):
        return {}
    return found

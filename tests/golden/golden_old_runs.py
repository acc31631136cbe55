"""Recipes whose whole folders are kept as earlier code wrote them, and how such a folder is packed."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from golden_data import KEPT
from golden_inside import answers, stored
from golden_losses import logs
from golden_recipes import LEARN, recipe, trained, words

import decoct as dc

FOLDER = Path(__file__).parent
LEFT_OUT = ("report.html", "model_card.md", ".lock")
"""What a run writes anew each time."""
PAIR = {"teacher": "teacher"}
QUICK: dict[str, Any] = {"repeats": 3, "warmup": 1, "seconds": 0.5}


def exported(*names: str) -> list[dict[str, Any]]:
    """An export of each model and a benchmark over all files."""
    files = {name: f"{name}_onnx" for name in names}
    steps = [{"use": "export", "name": file, "inputs": {"model": name}} for name, file in files.items()]
    return [*steps, {"use": "benchmark", "inputs": files, "reference": names[0], **QUICK}]


def digits() -> dict[str, Any]:
    """Images through every kind of step that changes what a model is: stores, pruning, sharing, rewriting, integers."""
    small = {"model": "student", **PAIR}
    files = {"teacher": "teacher_onnx", "student_alone": "student_alone", "student": "student_onnx"}
    top = {"keep": {"use": "top_k", "k": 3, "tail": "bucket"}, "features": ["layer3"]}
    return recipe(
        {"use": "image_classification", "augment": {"crop": 1}},
        {"use": "digits", "limit": 80},
        {"large": {"use": "small_resnet", "width": 4}, "small": {"use": "small_resnet", "width": 2}},
        trained("teacher", "large", budget={"steps": 20}),
        {"use": "label", "name": "labels", "inputs": PAIR, "views": 2},
        {"use": "label", "name": "labels_top", "inputs": PAIR, "views": 2, **top},
        trained("student_alone", "small", labels=40),
        {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "labels"}, "labels": 40, **LEARN},
        {"use": "distill", "name": "student_live", "inputs": {"model": "small", **PAIR}, "labels": 40, **LEARN},
        {"use": "prune", "name": "pruned", "inputs": small, **LEARN}
        | {"scheme": {"use": "channels", "ratio": 0.5, "round_to": 1}},
        {"use": "prune", "name": "sparse", "inputs": small, "scheme": {"use": "magnitude", "ratio": 0.5}, **LEARN},
        {"use": "rewrite", "name": "rewritten", "inputs": small, **LEARN}
        | {"scheme": {"use": "low_rank", "ratio": 0.5, "multiple": 1}},
        {"use": "share", "name": "shared", "inputs": small, "scheme": {"use": "codebook"}, **LEARN},
        {"use": "qat", "name": "integers", "inputs": small, **LEARN},
        {"use": "self_distill", "name": "exits", "inputs": {"model": "small"}, "exits": ["layer1"], **LEARN},
        {"use": "choose_exit", "name": "first_exit", "exit": "layer1"},
        {"use": "quantize", "name": "student_int8", "inputs": {"model": "student"}},
        {"use": "export", "name": "integers_int8", "inputs": {"model": "integers"}},
        {"use": "export", "name": "teacher_onnx", "inputs": {"model": "teacher"}},
        {"use": "export", "name": "student_onnx", "inputs": {"model": "student"}},
        {"use": "benchmark", "inputs": files, **QUICK},
    )


def texts() -> dict[str, Any]:
    """Texts under two tokenizers."""
    task = {"use": "text_classification", "max_length": 12, "tokenizer": {"use": "wordpiece", "size": 60}}
    return recipe(
        {**task, "teacher_max_length": 10, "teacher_tokenizer": {"use": "wordpiece", "size": 80}},
        {"use": "tsv", "path": "texts.tsv", "limit": KEPT},
        {"large": words("bert", 1), "small": {"use": "bilstm", "embedding": 4, "hidden": 4}},
        trained("teacher", "large", side="teacher"),
        {"use": "label", "name": "labels", "inputs": PAIR},
        {"use": "distill", "name": "student", "inputs": {"model": "small", **PAIR}, **LEARN},
        exported("teacher", "student"),
    )


def numbers() -> dict[str, Any]:
    """Numbers to predict, of which some are not known."""
    data = {"use": "csv", "path": "table.csv", "kind": "regression", "target": "price", "categorical": ["colour"]}
    return recipe(
        {"use": "regression"},
        {**data, "drop": ["kind"], "limit": KEPT, "labels": 32},
        {"large": {"use": "mlp", "hidden": [8, 8]}, "small": {"use": "mlp", "hidden": [4]}},
        trained("teacher", "large"),
        {"use": "label", "name": "labels", "inputs": PAIR},
        {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "labels"}, **LEARN}
        | {"objective": [{"use": "regression_kd", "weight": 0.5}, {"use": "task_loss", "weight": 0.5}]},
        exported("teacher", "student"),
    )


def classes() -> dict[str, Any]:
    """A table of classes, whose teacher are trees."""
    data = {"use": "csv", "path": "table.csv", "target": "kind", "categorical": ["colour"], "drop": ["price"]}
    trees = {"use": "gradient_boosting", "max_iter": 3}
    return recipe(
        {"use": "tabular_classification"},
        {**data, "limit": KEPT},
        {"small": {"use": "mlp", "hidden": [4]}},
        {"use": "train_estimator", "name": "teacher", "estimator": trees},
        {"use": "label", "name": "labels", "inputs": PAIR},
        {"use": "distill", "name": "student", "inputs": {"model": "small", **PAIR}, **LEARN},
        exported("teacher", "student"),
    )


OLD_RUNS: Mapping[str, Callable[[], dict[str, Any]]] = {
    each.__name__: each for each in (digits, texts, numbers, classes)
}


def continued(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with one more step, a student that listens to the store of the step `labels`."""
    student = next(step for step in plain["steps"] if step["name"] == "student")
    further = {**student, "name": "further", "inputs": {"model": "small", "teacher": "labels"}, "batch_size": 10}
    return {**plain, "steps": [*plain["steps"], further]}


def archive(name: str) -> Path:
    """The packed folder of an old run."""
    return FOLDER / f"old_{name}.tar.xz"


def pack(run: Path, name: str) -> None:
    """Packs a run's folder; equal files give equal bytes."""
    with tarfile.open(archive(name), "w:xz", preset=9) as packed:
        for path in sorted(run.rglob("*")):
            if path.is_file() and path.name not in LEFT_OUT:
                content = path.read_bytes()
                entry = tarfile.TarInfo(path.relative_to(run).as_posix())
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))


def unpack(name: str, folder: Path) -> Path:
    """The folder of an old run, as it was."""
    with tarfile.open(archive(name)) as packed:
        packed.extractall(folder, filter="data")
    return folder


def old_answers(run: Path) -> dict[str, Any]:
    """What every model, file and store of a run's folder says."""
    data = dc.Recipe.load(run / "recipe.yaml").data.open()
    found = {}
    for manifest in sorted(run.glob("[0-9]*/manifest.json")):
        artifact = dc.Artifact.load(manifest.parent)
        if artifact.kind == "store":
            found[artifact.name] = stored(artifact.folder)
        elif artifact.kind != "records":
            found[artifact.name] = answers(artifact, data)
    return found


def further(name: str, run: Path) -> dict[str, Any]:
    """What the step logs that an old run's recipe is continued with, in the folder of the old run."""
    dc.Recipe.parse(continued(OLD_RUNS[name]())).run(run)
    return {"further": logs(run)["further"]}

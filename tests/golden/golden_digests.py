"""Digests of every Spec of the catalogues, and keys of every step of recipes, without running anything."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from golden_inside import keys_of, opened
from golden_losses import room
from golden_old_runs import OLD_RUNS
from golden_recipes import RECIPES

import decoct as dc

SHIPPED = Path(__file__).parents[2] / "recipes"
PLACES: Mapping[str, str] = {
    "fashion_mnist": "fashion-mnist",
    "sst2": "sst2",
    "cifar10": "cifar10-subset",
    "credit_default": "credit-default",
    "california_housing": "california-housing",
    "conll": "wnut17",
    "image_masks": "camvid",
    "text": "tinyshakespeare/input.txt",
    "several": ".",
}
"""Where data sets that do not come with a dependency stand in the folder of data sets."""
NEEDED: Mapping[str, Any] = {
    "layers": {"layer2": "layer3"},
    "student_layers": ["a", "b"],
    "teacher_layers": ["c", "d"],
    "terms": [{"use": "kd", "weight": 0.5}, {"use": "cross_entropy"}],
    "name": "name",
    "path": "some/path",
    "url": "http://127.0.0.1:8700",
    "model": {"use": "mlp", "hidden": [4]},
    "estimator": {"use": "gradient_boosting"},
    "classes": ["0", "1"],
    "assistants": [{"use": "mlp", "hidden": [4]}],
    "exits": ["layer1"],
    "at": ["layer1"],
    "exit": "layer1",
    "part": "part",
    "k": 4,
    "reads": {"use": "images"},
    "heads": {"digit": {"use": "classes"}},
    "sets": {"digit": {"use": "digits"}},
    "target": "column",
    "type": "some.Class",
    "value": 0.5,
    "start": 0.5,
    "end": 0.25,
}
"""A value for each field, by name, that has no default."""
OTHERWISE: Mapping[str, dict[str, Any]] = {
    "BlackBox": {"url": "http://127.0.0.1:8700"},
    "ChooseExit": {"name": "name", "exit": "layer1"},
    "LayerFusion": {"layers": {"layer2": ["layer2", "layer3"]}},
    "Pretrained": {"path": "some/path"},
    "Rewrite": {"name": "name", "scheme": {"use": "low_rank"}},
    "Search": {"name": "name", "step": {"use": "train", "name": "tried"}, "setting": "batch_size"}
    | {"low": 1, "high": 8, "max_size_bytes": 9},
    "Share": {"name": "name", "scheme": {"use": "codebook"}},
    "Timm": {"name": "name"},
    "Transformers": {"path": "some/path"},
}
"""Entries that need one of several fields, or that mean something else by one."""
USED: Mapping[str, dict[str, Any]] = {
    "Distill": {
        "name": "student",
        "inputs": {"model": "small", "teacher": "large"},
        "objective": [
            {"use": "kd", "weight": {"use": "cosine", "start": 0.9, "end": 0.1}, "refine": [{"use": "smooth"}]},
            {"use": "hint", "layers": "auto", "teacher": "teacher"},
            {"use": "cross_entropy", "weight": 0.1, "on": "labelled"},
        ],
        "teachers": {"teacher": {"use": "process", "workers": 3}},
        "combine": {"use": "ensemble", "weights": {"teacher": 1.0}},
        "mix": {"use": "mixup", "alpha": 0.4},
        "accumulate": 4,
        "precision": "bf16",
        "labels": 100,
        "checkpoint_seconds": 5.0,
    },
    "Label": {
        "name": "labels",
        "keep": {"use": "top_k", "k": 64, "tail": "bucket"},
        "features": ["layer3"],
        "views": 8,
        "workers": 2,
    },
    "Export": {"name": "file", "target": {"use": "onnx"}, "max_latency_ms": 5.0},
    "TextClassification": {"tokenizer": {"use": "wordpiece", "size": 60}, "teacher_max_length": 64},
    "ImageClassification": {"augment": {"crop": 1}, "size": 32, "teacher_size": 64, "metric_name": "f1"},
    "Sum": {"terms": [{"use": "kd"}, {"use": "task_loss"}], "balance": {"use": "uncertainty"}},
}
"""Some with settings of their own."""


def digest_of(plain: Any) -> str:
    """SHA-256 over canonical JSON, as a Spec's digest is made."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def entries() -> dict[str, list[dict[str, Any]]]:
    """By class name, the fields given to every Spec that stands in a catalogue."""
    found = {name: getattr(dc, name) for name in dc.__all__}
    specs = {name: each for name, each in found.items() if isinstance(each, type) and issubclass(each, dc.Spec)}
    return {
        name: [least(name, each), *([USED[name]] if name in USED else [])] for name, each in specs.items() if each.use
    }


def least(name: str, spec: type[dc.Spec]) -> dict[str, Any]:
    """No more fields than an entry needs."""
    required = [field for field, info in spec.model_fields.items() if info.is_required()]
    return OTHERWISE[name] if name in OTHERWISE else {field: NEEDED[field] for field in required}


def all_digests_of(name: str) -> dict[str, dict[str, str]]:
    """By what is given, the digest of the Spec and of what of it stands in keys."""
    specs = {digest_of(given): getattr(dc, name).parse(given) for given in entries()[name]}
    return {given: {"digest": spec.digest(), "keyed": digest_of(spec.keyed())} for given, spec in specs.items()}


@cache
def recipes() -> dict[str, dc.Recipe]:
    """All shipped recipes, the tiny ones and those of the old runs."""
    shipped = {path.relative_to(SHIPPED).as_posix(): dc.Recipe.load(path) for path in sorted(SHIPPED.rglob("*.yaml"))}
    tiny = {name: dc.Recipe.parse(made()) for name, made in RECIPES.items()}
    return shipped | tiny | {f"old_{name}": dc.Recipe.parse(made()) for name, made in OLD_RUNS.items()}


def keys(recipe: dc.Recipe, folder: Path, root: Path | None) -> dict[str, Any]:
    """Of a recipe its digest, that of its task once the data are seen, the data's fingerprint, and each step's key.

    `folder` takes made-up data, `root` has the real ones; artifacts are stand-ins, known by the names of their steps.
    """
    found = {"digest": recipe.digest()}
    if recipe.data.use in PLACES:
        assert root is not None
        recipe = recipe.replace(data=recipe.data.replace(path=root / PLACES[recipe.data.use]))
    with room(folder):
        data, task = seen(recipe.data, recipe.task)
        found |= {"data": data.fingerprint, "task": task.digest()}
        return found | {"keys": keys_of(recipe, data, task)}


@cache
def seen(data: Any, task: Any) -> tuple[Any, Any]:
    """Data opened and the task that they resolve, once for all recipes that share them."""
    return opened(data), task.resolve(opened(data))

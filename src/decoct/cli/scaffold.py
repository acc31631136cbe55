"""Recipes that ship with decoct, and a commented first recipe for one's own data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import decoct
from decoct.cli.own_data import look_at, samples_of, with_detail
from decoct.cli.teachers import EPOCHS, Teacher
from decoct.cli.teachers import find as find_teacher
from decoct.errors import RecipeError, did_you_mean
from decoct.recipe.file import dump


def shipped() -> dict[str, Path]:
    """The recipes that come with decoct, by name."""
    package = Path(decoct.__file__).parent
    folders = [package / "_recipes", package.parents[1] / "recipes"]
    folder = next((each for each in folders if each.is_dir()), None)
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))} if folder else {}


def find(name: str) -> Path:
    """The recipe file that `name` means: a path, or the name of a shipped recipe."""
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml") or path.name != name:
        return path
    known = shipped()
    if name in known:
        return known[name]
    raise RecipeError(f"{name!r} is no file and no shipped recipe; {did_you_mean(name, known)}")


def about(path: Path) -> str:
    """The first sentence of a recipe's opening comment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".") + "."


@dataclass(frozen=True)
class Start:
    """What a first recipe for a task holds: data, models, how the teacher is made, the student's objective."""

    data: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    teacher: Mapping[str, Any]
    objective: tuple[Mapping[str, Any], ...]
    epochs: int
    task: Mapping[str, Any] = field(default_factory=dict)
    batch: Mapping[str, int] = field(default_factory=dict)
    given: Teacher | None = None


_KD = ({"use": "kd", "weight": 0.9, "temperature": 4.0}, {"use": "cross_entropy", "weight": 0.1})
_NETWORK = {"use": "train", "name": "teacher", "inputs": {"model": "large"}, "budget": {"epochs": 20}}
_BOOSTING = {"use": "train_estimator", "name": "teacher", "estimator": {"use": "gradient_boosting"}}
_MLP = {"small": {"use": "mlp", "hidden": [32, 32]}}

STARTS = {
    "image_classification": Start(
        data={"use": "digits"},
        models={"large": {"use": "small_resnet", "width": 32}, "small": {"use": "small_resnet", "width": 8}},
        teacher=_NETWORK,
        objective=_KD,
        epochs=20,
    ),
    "text_classification": Start(
        data={"use": "sst2"},
        models={
            "large": {
                "use": "transformers",
                "config": {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
            },
            "small": {"use": "bilstm"},
        },
        teacher={**_NETWORK, "budget": {"epochs": 5}},
        objective=_KD,
        epochs=5,
    ),
    "token_classification": Start(
        data={"use": "conll", "path": "DIR"},
        models={"large": {"use": "bilstm", "hidden": 256}, "small": {"use": "bilstm", "embedding": 64, "hidden": 64}},
        teacher={**_NETWORK, "budget": {"epochs": 10}},
        objective=({"use": "kd", "weight": 0.7, "temperature": 2.0}, {"use": "task_loss", "weight": 0.3}),
        epochs=10,
    ),
    "detection": Start(
        task={"augment": {"flip": True}},
        data={"use": "voc", "path": "DIR", "size": [192, 256]},
        models={"large": {"use": "small_detector", "widths": [32, 64, 96, 128]}, "small": {"use": "small_detector"}},
        teacher=_NETWORK,
        objective=({"use": "box_targets", "weight": 0.5}, {"use": "task_loss", "weight": 0.5}),
        epochs=20,
    ),
    "language_model": Start(
        data={"use": "text", "path": "FILE"},
        models={
            "large": {"use": "small_gpt", "width": 128, "depth": 4},
            "small": {"use": "small_gpt", "width": 64, "depth": 1, "heads": 2},
        },
        teacher={**_NETWORK, "budget": {"epochs": 6}},
        objective=({"use": "forward_kl", "weight": 0.9}, {"use": "task_loss", "weight": 0.1}),
        epochs=4,
    ),
    "segmentation": Start(
        data={"use": "image_masks", "path": "DIR", "size": [96, 128]},
        models={
            "large": {"use": "small_unet", "widths": [16, 32, 64]},
            "small": {"use": "small_unet", "widths": [8, 16]},
        },
        teacher=_NETWORK,
        objective=({"use": "kd", "weight": 0.9, "temperature": 1.0}, {"use": "task_loss", "weight": 0.1}),
        epochs=20,
    ),
    "multi_task": Start(
        task={"reads": {"use": "images"}, "heads": {"digit": {"use": "classes"}, "garment": {"use": "classes"}}},
        data={"use": "several", "sets": {"digit": {"use": "mnist"}, "garment": {"use": "fashion_mnist"}}},
        models={"large": {"use": "small_resnet", "width": 16}, "small": {"use": "small_mobilenet", "width": 8}},
        teacher={**_NETWORK, "budget": {"epochs": 6}},
        objective=(
            {"use": "kd", "name": "kd_digit", "head": "digit", "weight": 0.4},
            {"use": "kd", "name": "kd_garment", "head": "garment", "weight": 0.4},
            {"use": "task_loss", "weight": 0.2},
        ),
        epochs=4,
    ),
    "tabular_classification": Start(
        data={"use": "credit_default"},
        models=_MLP,
        teacher=_BOOSTING,
        objective=({"use": "kd", "weight": 0.9, "temperature": 1.0}, {"use": "cross_entropy", "weight": 0.1}),
        epochs=15,
    ),
    "regression": Start(
        data={"use": "california_housing"},
        models=_MLP,
        teacher=_BOOSTING,
        objective=({"use": "regression_kd", "weight": 0.7}, {"use": "task_loss", "weight": 0.3}),
        epochs=30,
    ),
}


PRESETS = {"fast": 0.25, "balanced": 1.0, "best": 2.0}
"""By how much each preset lengthens training; balanced and best write an int8 file of the student too."""
STEPS, BATCH, FEW = 600, 32, 5000
"""Training takes at least so many steps, by the preset's share; where samples are FEW, of BATCH of them."""
_STATIC, _DYNAMIC = {"use": "static"}, {"use": "dynamic"}
INTEGERS = {
    "image_classification": _STATIC,
    "segmentation": _STATIC,
    "text_classification": _DYNAMIC,
    "token_classification": _DYNAMIC,
}
"""How a student is written in int8, for the tasks where that makes a smaller file."""


@dataclass(frozen=True)
class Wishes:
    """What a first recipe is asked for: a preset, the names of the teacher's and the student's network, the target."""

    preset: str | None = None
    teacher: str | None = None
    student: str | None = None
    target: str | None = None

    def of(self, start: Start, samples: int | None = None, given: Teacher | None = None) -> Start:
        """The start with these wishes; few `samples` are seen more often, so that there are STEPS of them.

        `given`: the teacher that was named, as it was found.
        """
        if self.preset not in (None, *PRESETS):
            raise RecipeError(f"--preset {self.preset}: {did_you_mean(str(self.preset), PRESETS)}")
        share = PRESETS[self.preset or "balanced"]
        least = 0 if self.preset is None or not samples else math.ceil(STEPS * share * BATCH / samples)
        models: dict[str, Any] = dict(start.models)
        models |= {} if given is None else {"large": given.model}
        models |= {"small": _named(self.student)} if self.student else {}
        teacher = dict(_NETWORK if self.teacher and "budget" not in start.teacher else start.teacher)
        if given is not None and given.training:
            teacher |= {**given.training, "budget": {"epochs": EPOCHS}}
        batch = {"batch_size": BATCH} if least and samples and samples < FEW else {}
        if "budget" in teacher:
            teacher |= batch
            fewest = math.ceil(least / 4) if given is not None and given.training else least
            teacher["budget"] = {"epochs": max(fewest, _scaled(teacher["budget"]["epochs"], share))}
        task = {**start.task, **({} if given is None else given.task)}
        epochs = max(least, _scaled(start.epochs, share))
        return replace(start, models=models, teacher=teacher, batch=batch, epochs=epochs, task=task, given=given)


def _named(student: str) -> Any:
    """Plain data for a student's name: a folder or run here, else the name itself."""
    from decoct.models.base import of_path

    place = Path(student).expanduser()
    try:
        return of_path(place.resolve()) if place.exists() else student
    except ValueError as error:
        raise RecipeError(f"--student {student}: {error}") from None


def _scaled(epochs: int, share: float) -> int:
    return max(1, round(epochs * share))


def write(task: str | None = None, folder: Path | None = None, wishes: Wishes | None = None) -> str:
    """The text of a commented recipe that passes `check`, for a task, for the data in `folder`, or for both."""
    wishes = wishes or Wishes()
    data: dict[str, Any] = {}
    if folder is not None:
        guessed, data = look_at(folder, task, wishes.target)
        task = task or guessed
    task = task or "image_classification"
    if task not in STARTS:
        raise RecipeError(f"--task {task}: there is no first recipe for it; {did_you_mean(task, STARTS)}")
    given = find_teacher(wishes.teacher, task, data or STARTS[task].data) if wishes.teacher else None
    if given is not None and given.size is not None:
        data, given = with_detail(data, given)
    start = wishes.of(STARTS[task], None if wishes.preset is None else samples_of(data), given)
    scheme = INTEGERS.get(task) if wishes.preset in ("balanced", "best") else None
    return _HEAD + "".join(
        [
            "version: 1\n",
            "seed: 0                       # decides every random number of the run\n",
            f"\n# What is learnt: decoct list tasks, decoct explain {task}\n",
            dump({"task": {"use": task, **start.task}}),
            "\n# What it is learnt from: decoct list data; another place: decoct run ... data.path=PLACE\n",
            dump({"data": data or start.data}),
            "\n# Networks by name: decoct list models; any torchvision or timm name too, as timm/resnet18\n",
            dump({"models": start.models}),
            _steps(start, scheme),
        ]
    )


_HEAD = """\
# A decoct recipe: steps over artifacts, in order. A step takes the step before it where an input is left out.
#   decoct check FILE               tests it without training
#   decoct run FILE --out runs/a    does it; the same command continues it and redoes only what changed
#   decoct explain KEY              tells what any of these words means, its default and its range
"""


_ONCE = "What it says about every sample, kept: it is asked once, and every student learns from that."


def _steps(start: Start, scheme: Mapping[str, Any] | None = None) -> str:
    budget = {"epochs": start.epochs}
    alone = {"use": "train", "name": "student_alone", "inputs": {"model": "small"}, "budget": budget, **start.batch}
    ready = start.given is not None and start.given.ready
    source = "large" if ready else "teacher"
    once = start.given is not None and start.given.once
    inputs = {"model": "small", "teacher": "labels" if once else source}
    student = {
        "use": "distill",
        "name": "student",
        "inputs": inputs,
        "objective": list(start.objective),
        "budget": budget,
        **start.batch,
    }
    ships = start.given is None or start.given.ships
    names = ("teacher", "student_alone", "student") if ships else ("student_alone", "student")
    made = {"teacher": source}
    exports = [{"use": "export", "name": f"{name}_onnx", "inputs": {"model": made.get(name, name)}} for name in names]
    files = {name: f"{name}_onnx" for name in names}
    smaller: list[dict[str, Any]] = []
    if scheme is not None:
        smaller = [{"use": "quantize", "name": "student_int8", "inputs": {"model": "student"}, "scheme": scheme}]
        files["student_int8"] = "student_int8"
    benchmark = {"use": "benchmark", "name": "benchmark", "inputs": files} | ({} if ships else {"reference": None})
    parts = [
        *([] if ready else [("The large model, which is then frozen and teaches.", [start.teacher])]),
        *([(_ONCE, [{"use": "label", "name": "labels", "inputs": {"teacher": source}}])] if once else []),
        ("The small model without a teacher, on the same budget: what distilling is compared with.", [alone]),
        ("The small model on what the teacher says and on the labels; the weights of the terms are yours.", [student]),
        ("Each as an ONNX file, compared with its model on real samples.", exports),
        *([("The student in 8-bit integers.", smaller)] if smaller else []),
        ("Quality, size and speed of those files, on the test split.", [benchmark]),
    ]
    text = "\nsteps:\n"
    for comment, steps in parts:
        body = dump({"steps": steps}).partition("\n")[2]
        text += f"  # {comment}\n{body}"
    return text


def found(recipe: Path) -> list[str]:
    """What a recipe is about, as it was understood, one line each: the data, the task, the networks."""
    from decoct.data.index import opened
    from decoct.recipe.recipe import Recipe
    from decoct.runner.describing import described

    loaded = Recipe.load(recipe)
    networks = ", ".join(f"{name} {each.use}" for name, each in loaded.models.items())
    return [
        f"{loaded.data.path}: {described(opened(loaded.data), loaded.task)}",
        f"Models: {networks}; {recipe} has it all",
    ]

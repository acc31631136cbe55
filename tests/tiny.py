"""The smallest recipes that go through every step, shared by the tests of runs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from decoct.recipe.recipe import Recipe

LEARN: dict[str, Any] = {"budget": {"steps": 6}, "batch_size": 16, "log_every": 2}
PAIR: dict[str, Any] = {
    "version": 1,
    "seed": 0,
    "task": {"use": "image_classification"},
    "data": {"use": "digits", "limit": 200},
    "models": {"large": {"use": "small_resnet", "width": 4}, "small": {"use": "mlp", "hidden": [8]}},
    "steps": [
        {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **LEARN},
        {"use": "train", "name": "student_alone", "inputs": {"model": "small"}, **LEARN},
        {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "teacher"}, **LEARN},
    ],
}
SHIPPED: dict[str, Any] = {
    **PAIR,
    "steps": [
        *PAIR["steps"],
        {"use": "export", "name": "student_onnx", "inputs": {"model": "student"}},
        {
            "use": "benchmark",
            "inputs": {"teacher": "teacher", "student_alone": "student_alone", "student": "student_onnx"},
            "repeats": 4,
            "warmup": 1,
            "seconds": 0.5,
        },
    ],
}


def recipe(plain: Mapping[str, Any] = PAIR, **changes: Any) -> Recipe:
    """The recipe with other values at dotted places, `steps__2__batch_size=8`."""
    data = copy.deepcopy(dict(plain))
    for place, value in changes.items():
        *path, last = [int(part) if part.isdigit() else part for part in place.split("__")]
        at: Any = data
        for part in path:
            at = at[part]
        at[last] = value
    return Recipe.parse(data)


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, and the folders, by path."""
    paths = sorted(folder.rglob("*"))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in paths
    }


def timeless(path: Path) -> list[dict[str, Any]]:
    """The records of a log without their times."""
    return [{key: value for key, value in record.items() if key != "time"} for record in records(path)]


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


class Watch:
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))

    def steps(self, kind: str) -> list[str]:
        """The steps of all events of one kind, in order."""
        return [each["step"] for each in self.events if each["event"] == kind]

    def why(self, step: str) -> str:
        """Why a step was made or skipped."""
        return next(each["why"] for each in self.events if each["step"] == step and "why" in each)

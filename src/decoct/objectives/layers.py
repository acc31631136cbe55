"""Layers chosen from one forward pass: stages of equal resolution, blocks at equal relative depth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from decoct.capture import EVERY
from decoct.errors import RecipeError
from decoct.objectives.base import Objective
from decoct.objectives.criterion import teacher_name
from decoct.outputs import DENSE, Needs, Outputs

Look = Callable[[str, Needs], Outputs]
"""What a role ("student", a teacher's name) says about the probe batch, with features by `needs`."""

_NUMBERED = re.compile(r"^(?P<before>.*?)\d+(?P<after>\[0\])?$")


def choose_layers(objective: Objective, teachers: Sequence[str], look: Look) -> Objective:
    """`objective` with every `layers: auto` replaced by pairs of paths, chosen from one forward pass of each model.

    CNNs: the last module at each resolution that both have; transformers: each block of the student and the teacher's
    at equal relative depth, as between unlike kinds. `look` is only called where something is to be chosen.
    RecipeError names the objective and what was found where nothing can be chosen.
    """
    seen: dict[str, Outputs] = {}

    def every(role: str) -> Outputs:
        if role not in seen:
            seen[role] = look(role, Needs(features=frozenset({EVERY})) | DENSE)
        return seen[role]

    return _chosen(objective, tuple(teachers), every)


def undecided_roles(objective: Objective, teachers: Sequence[str]) -> tuple[str, ...]:
    """The roles whose layers `choose_layers` will look at: "student" and teachers by name; none where all is given."""
    found = {teacher_name(each, teachers) for each in objective.flat() if each.undecided}
    return ("student", *sorted(found)) if found else ()


def _chosen(objective: Objective, teachers: Sequence[str], every: Callable[[str], Outputs]) -> Objective:
    changed: dict[str, Any] = {}
    for name in type(objective).model_fields:
        value = getattr(objective, name)
        if isinstance(value, Objective):
            changed[name] = _chosen(value, teachers, every)
        elif isinstance(value, tuple) and any(isinstance(each, Objective) for each in value):
            changed[name] = tuple(
                _chosen(each, teachers, every) if isinstance(each, Objective) else each for each in value
            )
    if any(
        value is not getattr(objective, name) and value != getattr(objective, name) for name, value in changed.items()
    ):
        objective = objective.replace(**changed)
    if not objective.undecided:
        return objective
    return objective.decide(every("student"), every(teacher_name(objective, teachers)))


def stage_pairs(label: str, student: Outputs, teacher: Outputs) -> dict[str, str]:
    """Pairs of layers, student's to teacher's, in order of depth.

    Maps: stages of equal resolution, or at equal relative depth where no resolution is the same; tokens: blocks at
    equal relative depth (block i of n to block i·m/n of m), as between maps and tokens.
    """
    own, theirs = stages(student), stages(teacher)
    for who, found in (("student", own), ("teacher", theirs)):
        if not found:
            raise RecipeError(f"{label}: layers is auto, and the {who} has no stages to choose from; name the layers")
    if len(own[0][1]) == len(theirs[0][1]) == 4:
        at = {shape[2:]: path for path, shape in theirs}
        pairs = {path: at[shape[2:]] for path, shape in own if shape[2:] in at}
        if pairs:
            return pairs
    count, many = len(own), len(theirs)
    return {path: theirs[max(1, round((i + 1) * many / count)) - 1][0] for i, (path, _) in enumerate(own)}


def embedding_pair(label: str, student: Outputs, teacher: Outputs) -> dict[str, str]:
    """What goes into the last layer of both sides."""
    found = []
    for who, outputs in (("student", student), ("teacher", teacher)):
        path = last_layer(outputs)
        if path is None:
            raise RecipeError(f"{label}: layers is auto, and the {who} has no last layer; name the layers")
        found.append(f"{path}@input")
    return {found[0]: found[1]}


def last_layer(outputs: Outputs) -> str | None:
    """The layer that makes the logits: the first of the modules without parts that end with the shape of the logits."""
    if outputs.logits is None:
        return None
    found = None
    for path, value in reversed(list(outputs.features.items())):
        if not _has_parts(path, outputs.features):
            if value.shape != outputs.logits.shape:
                break
            found = path
    return found


def stages(outputs: Outputs) -> list[tuple[str, tuple[int, ...]]]:
    """Blocks of tokens where there are any, else the last module at each resolution: paths and shapes, in order."""
    size = next((len(each) for each in (outputs.logits, *outputs.features.values()) if each is not None), 0)
    return _blocks(outputs.features, size) or _resolutions(outputs.features, size)


def _blocks(features: Mapping[str, Tensor], size: int) -> list[tuple[str, tuple[int, ...]]]:
    """The longest run of numbered modules with parts of their own that give tokens of one shape."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for path, value in features.items():
        match = _NUMBERED.match(path)
        if match and value.ndim == 3 and len(value) == size and _has_parts(path, features):
            groups.setdefault((match["before"], match["after"], value.shape), []).append(path)
    longest = max(groups.values(), key=len, default=[])
    return [(path, tuple(features[path].shape)) for path in longest] if len(longest) > 1 else []


def _resolutions(features: Mapping[str, Tensor], size: int) -> list[tuple[str, tuple[int, ...]]]:
    maps = {path: tuple(each.shape) for path, each in features.items() if each.ndim == 4 and len(each) == size}
    maps = {path: each for path, each in maps.items() if each[2] * each[3] > 1 and not _channels_last(each)}
    groups = {path: each for path, each in maps.items() if _has_parts(path, features)}
    if len({each[2:] for each in groups.values()}) > 1:
        maps = groups
    kept: dict[tuple[int, ...], str] = {}
    for path, each in maps.items():
        before = kept.get(each[2:])
        if before is None or path.count(".") <= before.count("."):
            kept[each[2:]] = path
    found = [(path, maps[path]) for path in kept.values()]
    return sorted(found, key=lambda each: -each[1][2] * each[1][3])


def _channels_last(shape: tuple[int, ...]) -> bool:
    """`[B, H, H, C]`, which no map of channels first looks like unless it has as many channels as rows."""
    return shape[1] == shape[2] != shape[3]


def _has_parts(path: str, features: Iterable[str]) -> bool:
    stem = path.removesuffix("[0]") + "."
    return any(other.startswith(stem) for other in features)


def layers_text(shown: Iterable[Mapping[str, Any]]) -> str:
    """What Criterion.layers gives, as lines to be read.

    >>> one = {"term": "hint", "student": "layer3", "teacher": "layer4", "student_shape": [8, 7, 7],
    ...        "teacher_shape": [16, 7, 7], "adapter": "conv 8 to 16"}
    >>> print(layers_text([one]))
    hint: layer3 [8, 7, 7] to layer4 [16, 7, 7], adapter conv 8 to 16
    """
    return "\n".join(
        "{term}: {student} {student_shape} to {teacher} {teacher_shape}, adapter {adapter}".format(**each)
        for each in shown
    )

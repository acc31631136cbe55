"""What learning is made of: the student's module, the criterion between it and its teachers, the seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from decoct.artifact import Artifact
from decoct.models.modes import evaluating
from decoct.models.saving import load_model, load_spec
from decoct.objectives.base import Objective, Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Outputs, Predictor
from decoct.steps.learning.pretrained import network_of
from decoct.steps.learning.saving import Student

if TYPE_CHECKING:
    from decoct.tasks.base import Task


def build_student(value: Any, task: Task, side: str, given: Mapping[str, Any], *, answers: bool = False) -> Student:
    """The model of an input: built fresh from its Spec, or loaded from an artifact to be trained further.

    `answers`: a Spec's network is to answer as it is.
    """
    if not isinstance(value, Artifact):
        return Student(network_of(value, task, side, given, answers=answers).module, value, side)
    spec, _, _ = load_spec(value)
    return Student(load_model(value, given=given).module, spec, value.meta["side"])


def build_criterion(
    objective: Objective,
    task: Task,
    batch: Batch,
    forward: Callable[[Batch], Outputs],
    teachers: Mapping[str, Predictor],
    modules: Mapping[str, nn.Module],
    known: Mapping[str, tuple[int, ...]] | None = None,
    *,
    counts: tuple[int, ...] | None = None,
    reader: str = "student",
    counts_beside: Mapping[str, tuple[int, ...] | None] | None = None,
) -> Criterion:
    """The criterion for an objective, its terms shaped by one small batch seen in eval mode; `reader`: whose inputs
    `forward` reads."""
    with evaluating(*modules.values()), torch.no_grad():
        outputs = forward(batch)
        teacher_outputs = {name: teacher(batch) for name, teacher in teachers.items()}
    return Criterion.build(
        objective,
        Probe(task, batch, outputs, teacher_outputs, modules, known or {}, counts, reader, counts_beside or {}),
    )


def seed_everything(seed: int) -> None:
    """Seeds torch, NumPy's global state and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

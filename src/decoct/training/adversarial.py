"""Adversarial: a student that answers clean and attacked inputs, under a teacher of the clean ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from decoct.outputs import Batch, Outputs, Predictor
from decoct.training.attacks.base import Attack, attacked, label_loss, teacher_loss
from decoct.training.clock import Clock
from decoct.training.engine import Engine
from decoct.training.schedules import Schedule
from decoct.training.updates import Criterion, Items, Losses, Windowed

HEAD = "adversarial"
"""The head under which the student's answer to attacked inputs stands."""


@dataclass(frozen=True)
class Attacked:
    """A student that answers twice: clean inputs as usual, and attacked ones as its head "adversarial".

    `against`: what the attack makes large, the loss with the labels or the distance from the teachers' clean answers.
    """

    module: nn.Module
    forward: Callable[[Batch], Outputs]
    attack: Attack
    side: str
    against: Literal["labels", "teacher"] = "labels"

    def __call__(self, batch: Batch, teacher_outputs: Mapping[str, Outputs]) -> Outputs:
        """Both answers."""
        loss = teacher_loss(teacher_outputs) if self.against == "teacher" else label_loss
        changed = attacked(self.attack, self.module, self.forward, batch, self.side, loss)
        return replace(self.forward(batch), heads={HEAD: self.forward(changed)})


class Adversarial(Windowed):
    """The usual descent with a student that also answers inputs attacked anew at each step.

    The attack sees the student in eval mode; both answers that are learned from are given in train mode.
    """

    def __init__(
        self,
        student: Attacked,
        teachers: Mapping[str, Predictor],
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        engine: Engine | None = None,
        *,
        max_grad_norm: float | None = None,
        lr: float | Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, engine, max_grad_norm=max_grad_norm, lr=lr)
        self.student, self.teachers, self.criterion = student, teachers, criterion

    @property
    def splittable(self) -> bool:
        return self.criterion.splittable

    def items(self, batch: Batch) -> Items:
        return self.criterion.items(batch)

    def weights(self, clock: Clock) -> dict[str, float]:
        return self.criterion.weights(clock)

    def losses(self, batch: Batch, clock: Clock, shares: Mapping[str, Tensor | float] | None) -> Losses:
        teacher_outputs = {name: teacher(batch) for name, teacher in self.teachers.items()}
        with self.engine.autocast():
            outputs = self.student(batch, teacher_outputs)
        total, terms = self.criterion(outputs, teacher_outputs, batch, clock, shares)
        return total, terms, {}


def under_attack(attack: Attack, module: nn.Module, forward: Callable[[Batch], Outputs], side: str) -> Predictor:
    """What a model says of inputs that were attacked with the labels in sight."""

    def predict(batch: Batch) -> Outputs:
        return forward(attacked(attack, module, forward, batch, side, label_loss))

    return predict

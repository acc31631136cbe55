"""Refinement (data) and Lesson, the teacher's answer that it works on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.outputs import Batch, Dense, Outputs, TopK
from decoct.spec import Spec
from decoct.training.clock import Clock


@dataclass(frozen=True)
class Lesson:
    """What one term hears: the teacher's outputs, which items count, and how much.

    `label` of the term, for messages; `keep` bool `[*B]`, None for all; `weight` `[*B]` (or of the shape of a feature
    with 1 for its channels), None for 1 everywhere; `layers` the teacher's features that the term asks for.
    """

    label: str
    teacher: Outputs
    keep: Tensor | None = None
    weight: Tensor | None = None
    layers: tuple[str, ...] = ()

    def logits(self, refinement: str) -> Tensor:
        """The teacher's logits over at least two classes, in float32 at least; RecipeError where there are none."""
        found = self.teacher.logits
        if found is None and self.teacher.top is not None:
            found = all_classes(self.teacher.top, f"{self.label}: refine with {refinement}")
        if found is None or found.shape[-1] < 2:
            what = "no logits" if found is None else f"numbers {list(found.shape)}"
            raise RecipeError(f"{self.label}: refine with {refinement}: the teacher gives {what}; it is for classes")
        return found.detach() if found.dtype == torch.float64 else found.detach().float()

    def answer(self, logits: Tensor) -> Lesson:
        """The same lesson with other logits."""
        return replace(self, teacher=replace(self.teacher, distribution=Dense(logits)))

    def only(self, keep: Tensor) -> Lesson:
        """The same lesson for the items of `keep` alone."""
        return replace(self, keep=keep if self.keep is None else self.keep & keep)

    def weighted(self, weight: Tensor) -> Lesson:
        """The same lesson with each item's weight multiplied."""
        if self.weight is not None and self.weight.shape != weight.shape:
            raise RecipeError(f"{self.label}: two refinements weigh items of unlike shapes; keep one of them")
        return replace(self, weight=weight if self.weight is None else self.weight * weight)


def all_classes(top: TopK, label: str) -> Tensor:
    """Log-probabilities of all classes, the tail in equal parts; RecipeError where the tail is not kept so."""
    if top.tail != "uniform" and top.ids.shape[-1] < top.classes:
        raise RecipeError(
            f"{label}: the teacher keeps only the {top.ids.shape[-1]} largest of {top.classes} probabilities, with "
            f"tail: {top.tail}, and this needs them all. Label with tail: uniform or with all classes, or use kd, "
            "forward_kl or soft_cross_entropy, without refine"
        )
    return top.spread()


class Refinement(Spec):
    """Describes what is done to a teacher's answer before a term hears it; `refine` of an objective is a list of them.

    `labels`: it reads the targets, which must then be among the teacher's classes; `classes`: it reads the answer as a
    distribution over classes.
    """

    labels: ClassVar[bool] = False
    classes: ClassVar[bool] = True

    @abstractmethod
    def refine(self, lesson: Lesson, batch: Batch, clock: Clock) -> Lesson:
        """The refined lesson. It looks at each sample alone, so that a batch may be split."""


def known_targets(lesson: Lesson, teacher: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Target distributions `[*B, C]` in the teacher's type and `[*B]` bool, where they are known (else 0)."""
    target, classes = batch.target, teacher.shape[-1]
    if not isinstance(target, Tensor):
        raise RecipeError(f"{lesson.label}: refine: the batch has no single target; give the objective a `head`")
    if target.is_floating_point():
        soft = target.to(teacher.dtype)
        _refuse_unlike(lesson, teacher, soft.shape)
        known = ~soft.isnan().any(-1)
        soft = torch.where(known.unsqueeze(-1), soft, 0.0)
    else:
        _refuse_unlike(lesson, teacher, (*target.shape, classes))
        known = (target >= 0) & (target < classes)
        ids = torch.where(known, target, 0).unsqueeze(-1)
        soft = torch.zeros_like(teacher).scatter(-1, ids, 1.0)
    if batch.labelled is not None:
        known = known & batch.labelled.reshape(-1, *(1 for _ in known.shape[1:]))
    return soft * known.unsqueeze(-1), known


def _refuse_unlike(lesson: Lesson, teacher: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(teacher.shape) != tuple(expected):
        raise RecipeError(
            f"{lesson.label}: refine: teacher logits {list(teacher.shape)} and targets for {list(expected)}; "
            "map the teacher's classes to the task's first"
        )

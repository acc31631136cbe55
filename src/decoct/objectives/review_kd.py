"""Knowledge review: deep features of the student, fused with shallow ones, learn the teacher's shallow ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._features import LayeredObjective, feature, refuse_open
from decoct.objectives._logits import only
from decoct.objectives._numeric import promote, shape
from decoct.objectives.adapters import Norm, as_map
from decoct.objectives.base import Probe, Term
from decoct.objectives.hierarchical_context import hierarchical_context_loss
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock


class ReviewKD(LayeredObjective):
    """Compares with the teacher's features the student's, into which deeper ones were fused by attention (Chen 2021).

    `layers`: the pairs, at least two; they are taken from the smallest map to the largest. `width`: channels of the
    fusion, by default those of the student's deepest, 512 at most. Each stage is compared by
    `hierarchical_context_loss`, and the stages are summed. Tokens are laid out as maps; `adapter` has no part in it.
    Chen et al. 2021, arXiv 2104.09044, equations 7 to 9; fusion and initial weights as in the authors' code.
    """

    use: ClassVar[str] = "review_kd"
    splittable: ClassVar[bool] = False
    width: int | None = Field(default=None, ge=1, le=65_536)

    def build(self, probe: Probe) -> Term:
        """The running term; RecipeError for fewer than two pairs."""
        refuse_open(self)
        if len(self.chosen()) < 2:
            raise RecipeError(f"{self.label}: layers has {len(self.chosen())} pair; a review needs at least two")
        return ReviewTerm(self, probe)


class Fusion(nn.Module):
    """Attention-based fusion of one stage: `[B, C, H, W]` and what came from the deeper stage."""

    def __init__(self, width: int, middle: int, wanted: int, *, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(width, middle, 1, bias=False), Norm(middle))
        self.leave = nn.Sequential(nn.Conv2d(middle, wanted, 3, padding=1, bias=False), Norm(wanted))
        self.attend = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        for stage in (self.enter, self.leave):
            convolution = stage[0]
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher, and what goes on to the next shallower stage, both of `size`."""
        x = self.enter(x)
        if self.attend is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            share = self.attend(torch.cat([x, deeper], 1))
            x = x * share[:, :1] + deeper * share[:, 1:]
        if tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.leave(x), x


class ReviewTerm(Term):
    """The fusions, from the deepest stage to the shallowest."""

    splittable = False

    def __init__(self, objective: ReviewKD, probe: Probe) -> None:
        super().__init__()
        self.objective = objective
        teacher = only(probe.teachers)
        sizes: dict[str, tuple[Tensor, Tensor]] = {}
        for own, theirs in objective.chosen().items():
            s = feature(objective, "student", probe.student, own)
            t = feature(objective, "teacher", teacher, theirs)
            sizes[own] = (as_map(objective.label, promote(s)[0]), as_map(objective.label, t))
        self.order = sorted(sizes, key=lambda own: (sizes[own][0].shape[2], -sizes[own][0].shape[1]))
        deepest = sizes[self.order[0]][0]
        middle = objective.width or min(512, deepest.shape[1])
        self.fusions = nn.ModuleList()
        for i, own in enumerate(self.order):
            s, t = sizes[own]
            self.fusions.append(Fusion(s.shape[1], middle, t.shape[1], deepest=i == 0))
        self.to(deepest.device, deepest.dtype)
        self._shown = [self._show(own, *sizes[own], middle) for own in self.order]

    def _show(self, own: str, student: Tensor, teacher: Tensor, middle: int) -> dict[str, Any]:
        shapes = {"student_shape": list(student.shape[1:]), "teacher_shape": list(teacher.shape[1:])}
        adapter = f"fusion of width {middle}"
        return {"student": own, "teacher": self.objective.chosen()[own], **shapes, "adapter": adapter}

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        teacher, objective = only(teachers), self.objective
        total: Tensor | None = None
        passed: Tensor | None = None
        for own, fusion in zip(self.order, self.fusions):
            s = as_map(objective.label, promote(feature(objective, "student", student, own))[0])
            t = as_map(objective.label, feature(objective, "teacher", teacher, objective.chosen()[own]))
            made, passed = fusion(s, passed, tuple(t.shape[2:]))
            assert made.shape == t.shape, f"{shape(made)} and {shape(t)}"
            value = hierarchical_context_loss(made, t)
            total = value if total is None else total + value
        assert total is not None
        return total

    def layers(self) -> list[dict[str, Any]]:
        return self._shown

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch)

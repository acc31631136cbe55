"""Curriculum temperature: a temperature that learns to make the student's task harder as training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._logits import logits_of, only
from decoct.objectives._numeric import full_precision, item_mean, kl_rows, logit_pair
from decoct.objectives._selection import places_of
from decoct.objectives._shapes import Logits, Loss, Mask
from decoct.objectives.base import Objective, Probe, Suits, Term
from decoct.outputs import DENSE, Batch, Needs, Outputs
from decoct.training.clock import Clock
from decoct.training.schedules import Linear, Scalar, at


@full_precision
def ctkd_loss(student: Logits, teacher: Logits, temperature: Tensor, *, mask: Mask | None = None) -> Loss:
    """Mean over items of T²·KL(p‖q), p = softmax(teacher/T), q = softmax(student/T), with a gradient into T.

    Logits `[*B, C]`; `temperature` one number or `[*B]`, above 0; `mask` `[*B]` bool. 0 at student == teacher. At one
    number this is `kd_loss`. The factor T² is part of what the gradient of T sees, as in the authors' code.

    Li et al. 2023, arXiv 2211.16231, equation 2.

    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> round(ctkd_loss(x, -x, torch.tensor([2.0, 2.0])).item(), 4)
    1.1692
    """
    student, teacher = logit_pair("ctkd_loss", student, teacher, mask)
    if temperature.ndim and temperature.shape != student.shape[:-1]:
        raise RecipeError(
            f"ctkd_loss: temperature {list(temperature.shape)} and items {list(student.shape[:-1])}; allowed: one "
            "number, or one for each item"
        )
    t = temperature.to(student.dtype)
    wide = t.unsqueeze(-1) if t.ndim else t
    rows = kl_rows(F.log_softmax(teacher / wide, -1), F.log_softmax(student / wide, -1))
    return item_mean(t**2 * rows, mask)


class CTKD(Objective):
    """Distillation at a temperature that is learned against the student, more and more so (curriculum temperature).

    T = `start` + `span` · sigmoid(θ), θ = 1 at first. Its gradient is multiplied by −`reversal`, a number or schedule:
    at 1 it ascends the loss that the student descends, at 0 it stays, at −1 it descends. `per`: one T for the "run", or
    one for each "sample" by a small net on both sides' logits. T is in the log. `hidden`: width of the net of `per:
    sample`.

    Li et al. 2023, arXiv 2211.16231 (there λ rises by a cosine over the first 10 epochs of 240).
    """

    use: ClassVar[str] = "ctkd"
    start: float = Field(default=1.0, gt=0)
    span: float = Field(default=20.0, gt=0)
    reversal: Scalar = Linear(start=0.0, end=1.0, finish=0.1)
    per: Literal["run", "sample"] = "run"
    hidden: int = Field(default=64, ge=1, le=65_536)

    def suits(self) -> Suits:
        """Distributions over classes."""
        return "classes"

    def needs(self) -> Mapping[str, Needs]:
        return {"student": DENSE, "teacher": DENSE}

    def build(self, probe: Probe) -> Term:
        student = logits_of("student", probe.student, self.label)
        teacher = logits_of("teacher", only(probe.teachers), self.label)
        if student.shape != teacher.shape or student.shape[-1] == 1:
            raise RecipeError(
                f"{self.label}: student logits {list(student.shape)} and teacher logits {list(teacher.shape)}; they "
                "must be alike, over two classes or more"
            )
        return CTKDTerm(self, probe, student.shape[-1])


class CTKDTerm(Term):
    """Holds θ, or the net that gives it. Items: samples, or positions that the mask keeps."""

    selection = "mask"
    last: Tensor

    def __init__(self, objective: CTKD, probe: Probe, classes: int) -> None:
        super().__init__()
        self.objective = objective
        self._places = places_of(probe.student)
        self.theta = nn.Parameter(torch.ones(()))
        self.net: nn.Module | None = None
        if objective.per == "sample":
            self.net = nn.Sequential(
                nn.Linear(2 * classes, objective.hidden), nn.ReLU(), nn.Linear(objective.hidden, 1)
            )
        self.register_buffer("last", torch.tensor(objective.start + objective.span / (1 + math.exp(-1.0))))

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        label = self.objective.label
        own, theirs = logits_of("student", student, label), logits_of("teacher", only(teachers), label)
        temperature = self.temperature(own.detach(), theirs.detach(), at(self.objective.reversal, clock))
        if torch.is_grad_enabled():
            self.last.copy_(temperature.detach().mean())
        return ctkd_loss(own, theirs, temperature, mask=student.mask)

    def temperature(self, student: Tensor, teacher: Tensor, reversal: float) -> Tensor:
        """T, one number or `[*B]`, whose gradient comes back multiplied by −reversal."""
        theta = self.theta
        if self.net is not None:
            both = torch.cat([teacher, student], -1).to(self.theta.dtype)
            theta = theta + self.net(both).squeeze(-1)
        found = self.objective.start + self.objective.span * torch.sigmoid(theta)
        reversed_: Tensor = _Reversal.apply(found, reversal)
        return reversed_

    def learned(self) -> dict[str, float]:
        return {"temperature": float(self.last)}

    def items(self, batch: Batch) -> Tensor | int:
        return len(batch) * self._places


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient comes back multiplied by −factor (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None

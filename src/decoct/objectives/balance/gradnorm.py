"""Weights from gradient norms: every term pulls at the shared layer at the rate at which it lags behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.capture import find_module
from decoct.errors import RecipeError
from decoct.objectives.balance.base import Balance, Balancer, Shares
from decoct.tasks.base import Task
from decoct.training.clock import Clock

LEAST = 1e-3
"""No factor falls below this, so that no term is lost."""


def gradnorm_gradient(factors: Tensor, norms: Tensor, ratios: Tensor, *, alpha: float = 1.5) -> Tensor:
    """d/dw of Σ |w·g − Ḡ·rᵅ|, the target Ḡ·rᵅ held constant: factors w, norms g and loss ratios, all `[K]`.

    g = ‖∇_W (weight · L)‖₂ of each term over the shared parameters, Ḡ = mean(w·g), r = ratio / mean ratio, ratio =
    L(t) / L(0). Chen et al. 2018, arXiv 1711.02257, equations 1 and 2.

    >>> gradnorm_gradient(torch.ones(2), torch.tensor([1.0, 3.0]), torch.ones(2)).tolist()
    [-1.0, 3.0]
    """
    weighted = factors * norms
    pace = (ratios / ratios.mean().clamp(min=1e-30)).clamp(min=1e-12)
    return torch.sign(weighted - weighted.mean() * pace**alpha) * norms


class GradNorm(Balance):
    """Learns factors of sum K so that gradients of all K terms keep pace at a shared layer (Chen et al. 2018).

    `alpha`: how strongly terms that learn slowly are pulled up. `lr` of the factors' own Adam. `layer`: the module of
    the student whose weights are shared; left out, the last weights that every term reaches. Each step costs one more
    partial backward pass a term. Terms must not be below 0. A batch cannot be split.
    """

    use: ClassVar[str] = "gradnorm"
    alpha: float = Field(default=1.5, ge=0, allow_inf_nan=False)
    lr: float = Field(default=0.025, gt=0, allow_inf_nan=False)
    layer: str | None = None

    def build(self, labels: Sequence[str], taught: Sequence[bool], task: Task, student: nn.Module | None) -> Balancer:
        """The running balancer; RecipeError where the student is no module or the layer has no weights."""
        if student is None:
            raise RecipeError("balance is gradnorm, which needs the student as a torch module")
        return GradNormBalancer(self, labels, student)


class GradNormBalancer(Balancer):
    """The factors, their Adam moments, the first losses, and which parameters are shared."""

    splittable = False
    now: Tensor
    first: Tensor
    moments: Tensor

    def __init__(self, balance: GradNorm, labels: Sequence[str], student: nn.Module) -> None:
        super().__init__(labels)
        self.balance = balance
        self._student = (student,)  # in a tuple, so that the student is no part of the criterion
        count = len(self.labels)
        self.register_buffer("now", torch.ones(count))
        self.register_buffer("first", torch.full((count,), torch.nan))
        self.register_buffer("moments", torch.zeros(2, count))
        self.steps = 0
        self.shared: int | None = None
        if balance.layer is not None and not _weights(find_module(student, balance.layer)):
            raise RecipeError(f"gradnorm: layer {balance.layer!r} has no weights that are trained; name another")

    def factors(
        self, values: Mapping[str, Tensor], weights: Mapping[str, float], shares: Shares, clock: Clock
    ) -> Tensor:
        before = self.now.clone()
        if self.learning():
            self._learn([values[label] for label in self.labels], [weights[label] for label in self.labels])
        return before

    def _learn(self, values: Sequence[Tensor], weights: Sequence[float]) -> None:
        shared = self._shared(values)
        norms = torch.stack([_norm(value, shared).to(self.now.device) for value in values])
        norms = norms * torch.tensor(weights, device=norms.device).abs()
        losses = torch.stack([value.detach().float() for value in values])
        self.first.copy_(torch.where(self.first.isnan() & (losses > 0) & losses.isfinite(), losses, self.first))
        ratios = torch.where(self.first.isnan(), 1.0, losses.clamp(min=0) / self.first)
        gradient = gradnorm_gradient(self.now, norms, ratios, alpha=self.balance.alpha)
        gradient = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)  # the step's guard sees to what is not finite
        self.steps += 1
        lowered = self.now - self.balance.lr * self._adam(gradient)
        lowered = lowered.clamp(min=LEAST)
        self.now.copy_(lowered * len(lowered) / lowered.sum())

    def _adam(self, gradient: Tensor) -> Tensor:
        """Adam's direction for this gradient, with its usual constants."""
        first, second = self.moments
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        return (first / (1 - 0.9**self.steps)) / ((second / (1 - 0.999**self.steps)).sqrt() + 1e-8)

    def _shared(self, values: Sequence[Tensor]) -> list[Tensor]:
        student = self._student[0]
        if self.balance.layer is not None:
            return _weights(find_module(student, self.balance.layer))
        candidates = _weights(student)
        if self.shared is None:
            self.shared = _last_reached(candidates, values)
        return [candidates[self.shared]]

    def get_extra_state(self) -> dict[str, int | None]:
        """Steps done, and the number of the shared parameter."""
        return {"steps": self.steps, "shared": self.shared}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Goes back."""
        self.steps, self.shared = state["steps"], state["shared"]


def _weights(module: nn.Module) -> list[Tensor]:
    """The trained parameters with more than one axis, in the order of the module's definition."""
    return [each for each in module.parameters() if each.requires_grad and each.ndim > 1]


def _last_reached(candidates: Sequence[Tensor], values: Sequence[Tensor]) -> int:
    """The number of the last parameter that every term has a gradient for."""
    reached = [True] * len(candidates)
    for value in values:
        found = torch.autograd.grad(value, candidates, retain_graph=True, allow_unused=True)
        reached = [before and each is not None for before, each in zip(reached, found)]
    if not any(reached):
        raise RecipeError("gradnorm: no weights of the student are reached by every term; name a `layer`")
    return max(number for number, each in enumerate(reached) if each)


def _norm(value: Tensor, shared: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(value, shared, retain_graph=True, allow_unused=True)
    squares = [each.float().square().sum() for each in found if each is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())

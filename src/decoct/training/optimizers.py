"""Optimizers as Specs: how the student's parameters follow the gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from decoct.errors import RecipeError
from decoct.spec import Catalogue, Spec
from decoct.training.clock import Clock
from decoct.training.schedules import Scalar, at, bounds

if TYPE_CHECKING:
    import torch
    from torch import nn

CATALOGUE = Catalogue(
    "optimizer",
    {
        "sgd": "decoct.training.optimizers:SGD",
        "adamw": "decoct.training.optimizers:AdamW",
    },
)


class Optimizer(Spec):
    """Describes an optimizer; `lr` is a number or a schedule, read anew at each step by the update.

    `weight_decay`: how strongly weights are drawn to 0, without biases and scales of norms.
    """

    positional: ClassVar[tuple[str, ...]] = ("lr",)
    lr: Scalar
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @field_validator("lr")
    @classmethod
    def _not_negative(cls, value: Any) -> Any:
        low, high = bounds(value)
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"learning rates from {low} to {high}; allowed: 0 and more")
        return value

    @abstractmethod
    def build(self, parameters: nn.Module | Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The running optimizer over those parameters that require a gradient, each once.

        Parameters of one dimension (biases, scales of norms) have no weight decay. RecipeError where none is left.
        """

    def groups(self, parameters: nn.Module | Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups: decayed, and not."""
        from torch import nn

        found = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        trained = list({id(each): each for each in found if each.requires_grad}.values())
        if not trained:
            raise RecipeError(f"{self.use}: no parameter requires a gradient; unfreeze some of the student")
        if not self.weight_decay:
            return [{"params": trained, "weight_decay": 0.0}]
        decayed = [each for each in trained if each.ndim > 1]
        plain = [each for each in trained if each.ndim <= 1]
        groups = [(decayed, self.weight_decay), (plain, 0.0)]
        return [{"params": some, "weight_decay": decay} for some, decay in groups if some]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    `momentum`: how much of the last step is kept. `nesterov`: look ahead along the momentum before the gradient.

    >>> import torch
    >>> from torch import nn
    >>> SGD(0.1).build([nn.Parameter(torch.zeros(2))]).param_groups[0]["momentum"]
    0.9
    """

    use: ClassVar[str] = "sgd"
    lr: Scalar = 0.05
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true and momentum 0; give momentum a value, such as 0.9")
        return self

    def build(self, parameters: nn.Module | Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        import torch

        now = at(self.lr, Clock())
        return torch.optim.SGD(self.groups(parameters), lr=now, momentum=self.momentum, nesterov=self.nesterov)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    `betas`: how much of the running mean of gradients, and of their squares, is kept.

    >>> import torch
    >>> from torch import nn
    >>> AdamW(1e-3).build([nn.Parameter(torch.zeros(2))]).param_groups[0]["betas"]
    (0.9, 0.999)
    """

    use: ClassVar[str] = "adamw"
    lr: Scalar = 1e-3
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.999)

    @field_validator("betas")
    @classmethod
    def _fractions(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= each < 1 for each in value):
            raise ValueError(f"{value}; both must be at least 0 and less than 1")
        return value

    def build(self, parameters: nn.Module | Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(self.groups(parameters), lr=at(self.lr, Clock()), betas=self.betas)

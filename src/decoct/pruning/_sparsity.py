"""Training towards sparsity: proximal steps after each step of the optimizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decoct.pruning._atoms import Axis, Group, Units
from decoct.pruning._scores import WEIGHED
from decoct.training.callback import Callback
from decoct.training.clock import Clock


class Part:
    """One axis of one parameter, and the unit that each of its indices belongs to."""

    def __init__(self, parameter: Tensor, axis: Axis, group: Group) -> None:
        self.parameter, self.dim = parameter, axis.dim
        units, device = Units.made(group.axes[axis]), parameter.device
        self.units = torch.as_tensor(units.owners, device=device)
        self.at = torch.as_tensor(units.flat, device=device)

    def squares(self) -> Tensor:
        """The sum of squares along the axis, for each of its indices that belongs to a unit."""
        rows = self.parameter.detach().movedim(self.dim, 0).reshape(self.parameter.shape[self.dim], -1)
        return rows.square().sum(1)[self.at]

    def scale(self, factors: Tensor) -> None:
        """Multiplies what belongs to each unit by the unit's factor, in place."""
        full = torch.ones(self.parameter.shape[self.dim], dtype=factors.dtype, device=factors.device)
        full[self.at] = factors[self.units]
        shape = [1] * self.parameter.dim()
        shape[self.dim] = -1
        self.parameter.mul_(full.view(shape).to(self.parameter.dtype))


class _Lasso(Callback):
    """Soft thresholds over the groups of a dependency graph; it keeps no state."""

    def __init__(self, module: nn.Module, groups: Sequence[Group], weight: float) -> None:
        self.weight = weight
        self.parts: list[tuple[int, list[Part]]] = []
        modules, parameters = dict(module.named_modules()), dict(module.named_parameters())
        for group in groups:
            mine = [axis for axis in group.axes if axis.tensor in parameters]
            wanted = [axis for axis in mine if self.wants(modules[axis.tensor.rpartition(".")[0]], axis, parameters)]
            if wanted:
                self.parts.append((group.size, [Part(parameters[axis.tensor], axis, group) for axis in wanted]))

    @abstractmethod
    def wants(self, owner: nn.Module, axis: Axis, parameters: Mapping[str, Tensor]) -> bool:
        """Whether the axis of this parameter counts."""

    @property
    def ready(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state


class GroupLasso(_Lasso):
    """Group lasso: the proximal step of `weight * sqrt(size) * norm`, summed over units (Yuan & Lin 2006).

    After a step of learning rate r, a unit of p weights and norm n is scaled by `max(0, 1 - r * weight * sqrt(p) / n)`.
    """

    def wants(self, owner: nn.Module, axis: Axis, parameters: Mapping[str, Tensor]) -> bool:
        return isinstance(owner, WEIGHED) and parameters[axis.tensor].dim() > 1

    def after_step(self, clock: Clock, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
        rate = float(optimizer.param_groups[0]["lr"])
        zero, total = torch.zeros(()), 0
        for size, parts in self.parts:
            squares = parts[0].parameter.new_zeros(size)
            counts = parts[0].parameter.new_zeros(size)
            for part in parts:
                squares.index_add_(0, part.units, part.squares())
                each = part.parameter.numel() // part.parameter.shape[part.dim]
                counts.index_add_(0, part.units, counts.new_full((len(part.at),), float(each)))
            norms = squares.sqrt()
            factors = (1 - rate * self.weight * counts.sqrt() / norms.clamp(min=1e-12)).clamp(min=0)
            for part in parts:
                part.scale(factors)
            zero, total = zero + (factors == 0).sum().cpu(), total + size
        return {"zero_channels": zero / total}


class ScaleLasso(_Lasso):
    """L1 on batch-norm scales: a step of learning rate r draws each towards 0 by `r * weight` (Liu et al. 2017)."""

    def wants(self, owner: nn.Module, axis: Axis, parameters: Mapping[str, Tensor]) -> bool:
        return isinstance(owner, nn.modules.batchnorm._BatchNorm) and axis.tensor.endswith("weight")

    def after_step(self, clock: Clock, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
        limit = float(optimizer.param_groups[0]["lr"]) * self.weight
        zero, total = torch.zeros(()), 0
        for _, parts in self.parts:
            for part in parts:
                value = part.parameter
                value.copy_(value.sign() * (value.abs() - limit).clamp(min=0))
                zero, total = zero + (value == 0).sum().cpu(), total + value.numel()
        return {"zero_scales": zero / total}

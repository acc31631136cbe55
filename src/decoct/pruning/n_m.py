"""N:M sparsity, as 2:4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.pruning._masks import ByMagnitude, Growing, Pace, Tensors, held, magnitudes, masked, nonzero, prunable
from decoct.training.callback import Callback
from decoct.training.compression import Change, Compressed, Evidence, Scheme

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SHOWN = 6


class NM(Scheme):
    """Keeps the n largest of each m consecutive weights along the input.

    `n`, `m`: 2:4 by default, which some accelerators run faster; ONNX Runtime on a CPU does not. `schedule`: how n
    falls from m while the network trains (recover: joint), at once or one by one from `begin`, a share of the budget.
    The input of a linear layer are its columns, of a convolution the channels at each place of the kernel. Layers
    whose input is no multiple of m stay. Mishra et al. 2021, "Accelerating sparse deep neural networks".
    """

    use: ClassVar[str] = "n_m"
    removes: ClassVar[bool] = False

    n: int = Field(default=2, ge=1)
    m: int = Field(default=4, ge=2)
    schedule: Literal["one_shot", "gradual"] = "one_shot"
    begin: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _fewer(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"n is {self.n} and m is {self.m}; n must be below m")
        return self

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        fitting = self.weights(module)
        every = prunable(module, self.protect)
        notes = {name: self._why_not(name, each, module) for name, each in every.items() if name not in fitting}
        return masked(module, self.masks(magnitudes(fitting), 1.0), notes)

    def weights(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The weights whose input is a multiple of m; RecipeError where there are none."""
        every = prunable(module, self.protect)
        found = {name: each for name, each in every.items() if not self._why_not(name, each, module)}
        if not found:
            reasons = "; ".join(f"{name} {self._why_not(name, every[name], module)}" for name in list(every)[:SHOWN])
            raise RecipeError(f"n_m: no layer fits {self.n}:{self.m} ({reasons}); give another m")
        return found

    def masks(self, scores: Mapping[str, Tensor], strength: float) -> Tensors:
        """The masks when so much of the way from m to n is done; whole steps alone."""
        keep = self.m - int((self.m - self.n) * strength + 1e-9)
        return {name: largest_of(each, keep, self.m) for name, each in scores.items()}

    def stage(self, number: int, count: int) -> Self:
        """n after `number` of `count` rounds, rounded down."""
        return self.replace(n=self.m + (-(self.m - self.n) * number) // count)

    def callback(self, module: nn.Module, evidence: Evidence, until: float) -> Callback:
        def shape(time: float) -> float:
            return time if self.schedule == "gradual" else 1.0

        weights = self.weights(module)
        return Growing(weights, ByMagnitude(weights), self.masks, Pace(self.begin, until, 1, shape))

    def changes(self, module: nn.Module) -> tuple[Change, ...]:
        return nonzero(self.weights(module))

    def hold(self, module: nn.Module) -> Callback:
        return held(self.weights(module))

    def _why_not(self, name: str, weight: Tensor, module: nn.Module) -> str:
        """Why a weight stays; empty where it need not."""
        if isinstance(module.get_submodule(name.rpartition(".")[0]), TRANSPOSED):
            return "stays: the inputs of a transposed convolution do not lie side by side"
        size = weight.shape[1]
        return f"stays: its input, {size}, is no multiple of {self.m}" if size % self.m else ""


def largest_of(scores: Tensor, n: int, m: int) -> Tensor:
    """A mask of the n largest of each m consecutive scores along axis 1; of equal ones the first.

    >>> largest_of(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 2, 4)
    tensor([[False,  True,  True, False]])
    """
    last = scores.movedim(1, -1)
    groups = last.reshape(-1, m)
    order = groups.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :n], value=True)
    return mask.view(last.shape).movedim(-1, 1).contiguous()

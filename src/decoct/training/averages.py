"""Average: the exponential moving average of a model's weights, as a predictor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decoct.outputs import Batch
from decoct.training.base import ManagedUpdate
from decoct.training.clock import Clock


class Average:
    """Weights that follow those of a model: w ← d·w + (1 − d)·model, d = min(decay, 1 − 1/(steps + 1)).

    `module` is a copy in eval mode that takes no gradient; buffers of floating type (running statistics) are averaged
    too, others copied. The first step copies, so that the start is forgotten soon. A part of the State, not a teacher.

    Tarvainen and Valpola 2017, arXiv 1703.01780, and the ramp of d in the authors' code.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = Average(model, decay=0.9)
    >>> average.follow(model); average.module.weight.equal(model.weight)
    True
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """One step towards the model as it is now."""
        kept = min(self.decay, 1 - 1 / (self.steps + 1))
        self.steps += 1
        for own, theirs in zip(_tensors(self.module), _tensors(model)):
            if own.is_floating_point():
                own.lerp_(theirs.to(own.dtype), 1 - kept)
            else:
                own.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights, and how many steps they followed."""
        return {**self.module.state_dict(), "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back."""
        self.steps = int(state["steps"])
        self.module.load_state_dict({name: each for name, each in state.items() if name != "steps"})


class Following(ManagedUpdate):
    """An update after which an average follows the model."""

    def __init__(self, update: ManagedUpdate, model: nn.Module, average: Average) -> None:
        self.update, self.model, self.average = update, model, average

    def __call__(self, window: Sequence[Batch], clock: Clock) -> Mapping[str, Tensor]:
        logged = self.update(window, clock)
        self.average.follow(self.model)
        return logged

    def settings(self, clock: Clock) -> dict[str, Any]:
        return self.update.settings(clock)

    def state_dict(self) -> dict[str, Any]:
        return self.update.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update.load_state_dict(state)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]

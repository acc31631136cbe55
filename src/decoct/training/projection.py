"""Projection, the callback that keeps entries of parameters at zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from decoct.training.callback import Callback
from decoct.training.clock import Clock


class Projection(Callback):
    """Multiplies parameters by fixed masks after each optimizer step; entries whose mask is False stay zero.

    `parameters` by name, and a boolean mask of equal shape for each.
    """

    def __init__(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self.masks = {name: masks[name] for name in self.parameters}
        self.sparsity = self._sparsity()

    def after_step(self, clock: Clock, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
        self.project()
        return {"sparsity": self.sparsity}

    def project(self) -> None:
        """Sets to zero what the masks leave out."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.mul_(self.masks[name])

    def replace(self, masks: Mapping[str, Tensor]) -> None:
        """Takes other masks and projects at once."""
        self.masks = dict(masks)
        self.sparsity = self._sparsity()
        self.project()

    @property
    def ready(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.masks = {name: state["masks"][name].to(each.device) for name, each in self.parameters.items()}
        self.sparsity = self._sparsity()

    def _sparsity(self) -> Tensor:
        """The share of entries that are left out."""
        total = sum(mask.numel() for mask in self.masks.values())
        kept = sum((mask.sum() for mask in self.masks.values()), torch.tensor(0))
        return 1 - kept / max(1, total)

"""Statistics of layers at work, read off a few batches of training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decoct.capture import capture
from decoct.errors import PathError, RecipeError
from decoct.models.modes import evaluating
from decoct.training.compression import Evidence

Take = Callable[[str, Mapping[str, Tensor]], None]


class _Watched(nn.Module):
    """A network, and after each of its passes a look at its features."""

    def __init__(self, module: nn.Module, paths: Sequence[str], look: Callable[[Mapping[str, Tensor]], None]) -> None:
        super().__init__()
        self.module, self.paths, self.look = module, paths, look

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with capture(self.module, self.paths) as features:
            output = self.module(*args, **kwargs)
        self.look(features)
        return output


def watch(module: nn.Module, evidence: Evidence, paths: Sequence[str], take: Take, *, inputs: bool = False) -> set[str]:
    """Calls take(path, features) for each layer after each batch, in eval mode; returns the layers that did not run.

    `features[path]` is what the layer gave, with `inputs` `features["PATH@input"]` what it took.
    """
    if evidence.passes is None:
        raise RecipeError("weighted: true needs data to look at; give data, or leave weighted out")
    idle = set(paths)
    wanted = {path: (path, f"{path}@input") if inputs else (path,) for path in paths}

    def look(features: Mapping[str, Tensor]) -> None:
        for path, names in wanted.items():
            try:
                seen = {name: features[name] for name in names}
            except PathError:
                continue
            idle.discard(path)
            take(path, seen)

    every = [name for names in wanted.values() for name in names]
    with torch.no_grad(), evaluating(module):
        evidence.passes(_Watched(module, every, look).eval())
    return idle


def rows(features: Tensor, *, channel: int) -> Tensor:
    """Features whose axis `channel` holds the channels, as float64 rows `[N, channels]` on the CPU."""
    last = features.movedim(channel, -1)
    return last.reshape(-1, last.shape[-1]).cpu().double()

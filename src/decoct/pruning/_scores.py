"""Scores: how much each unit of a group matters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.modes import evaluating
from decoct.pruning._atoms import Axis, Group, Units, ranges
from decoct.training.compression import Evidence

Score = Literal["l1", "l2", "taylor", "bn_scale"]
WEIGHED = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Linear, nn.Embedding, nn.RNNBase),
)
"""Layers whose weights count in norms; normalization and biases do not."""


class Scores:
    """Scores of groups of one network. `taylor` takes the gradients of the evidence's losses at once."""

    def __init__(self, module: nn.Module, score: Score, evidence: Evidence) -> None:
        self.score = score
        self.modules = dict(module.named_modules())
        self.tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.gradients = gradients(module, evidence, "score taylor") if score == "taylor" else []

    def of(self, group: Group) -> np.ndarray | None:
        """One number for each unit; None where the score does not apply (bn_scale without a batch norm).

        l1 and l2: the norm of all weights (rows and columns) of convolutions, linear layers, embeddings and recurrent
        layers that go with the unit. bn_scale: the mean of the absolute scales of its batch norms (Liu et al. 2017).
        taylor: the square of the sum of weight times gradient, summed over the layers that it goes through, mean over
        batches (Molchanov et al. 2019).
        """
        if self.score == "bn_scale":
            return self._scales(group)
        weighed = [axis for axis in group.axes if self._is_weight(axis)]
        if self.score == "taylor":
            return self._taylor(group, weighed)
        power = 1 if self.score == "l1" else 2
        total = np.zeros(group.size)
        for axis in weighed:
            total += sums(self.tensors[axis.tensor].detach().abs() ** power, axis.dim, group.axes[axis])
        return total ** (1 / power)

    def _taylor(self, group: Group, weighed: Sequence[Axis]) -> np.ndarray:
        total = np.zeros(group.size)
        for found in self.gradients:
            for axis in weighed:
                if axis.tensor in found:
                    product = self.tensors[axis.tensor].detach() * found[axis.tensor]
                    total += sums(product, axis.dim, group.axes[axis]) ** 2
        return total / len(self.gradients)

    def _scales(self, group: Group) -> np.ndarray | None:
        axes = [axis for axis in group.axes if self._is_scale(axis)]
        if not axes:
            return None
        parts = [sums(self.tensors[axis.tensor].detach().abs(), 0, group.axes[axis]) for axis in axes]
        found: np.ndarray = np.mean(parts, axis=0)
        return found

    def _is_weight(self, axis: Axis) -> bool:
        return self.tensors[axis.tensor].dim() > 1 and isinstance(self._owner(axis), WEIGHED)

    def _is_scale(self, axis: Axis) -> bool:
        owner = self._owner(axis)
        return isinstance(owner, nn.modules.batchnorm._BatchNorm) and axis.tensor.endswith("weight")

    def _owner(self, axis: Axis) -> nn.Module:
        return self.modules[axis.tensor.rpartition(".")[0]]


def sums(tensor: Tensor, dim: int, units: Sequence[np.ndarray]) -> np.ndarray:
    """What each unit's slices along an axis add up to.

    >>> sums(torch.ones(4, 3), 0, [np.array([0, 1]), np.array([2])]).tolist()
    [6.0, 3.0]
    """
    rows = tensor.double().movedim(dim, 0).flatten(1).sum(1) if tensor.dim() > 1 else tensor.double()
    own = Units.made(units)
    values, found = rows.cpu().numpy()[own.flat], np.zeros(len(own))
    for count in np.unique(own.counts).tolist():
        at = np.flatnonzero(own.counts == count)
        found[at] = values[ranges(own.starts[at], own.counts[at])].reshape(len(at), count).sum(1)
    return found


def gradients(module: nn.Module, evidence: Evidence, setting: str) -> list[dict[str, Tensor]]:
    """The gradient of each of the evidence's losses, by parameter; the module is left as it was."""
    parameters = {name: each for name, each in module.named_parameters() if each.dtype.is_floating_point}
    wanted = {name: each.requires_grad for name, each in parameters.items()}
    found = []
    try:
        for each in parameters.values():
            each.requires_grad_(True)
        with evaluating(module), torch.enable_grad():
            for loss in evidence.losses_of(module, setting):
                parts = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                found.append({name: part for name, part in zip(parameters, parts) if part is not None})
    finally:
        for name, each in parameters.items():
            each.requires_grad_(wanted[name])
    if not found:
        raise RecipeError(f"{setting} needs losses on data, and there was no batch; give data")
    return found


def keep_count(size: int, ratio: float, round_to: int) -> int:
    """How many of `size` units stay: what the ratio leaves, rounded to the nearest multiple, halves up.

    >>> [keep_count(64, 0.5, 8), keep_count(24, 0.5, 8), keep_count(6, 0.5, 8), keep_count(10, 0.5, 1)]
    [32, 16, 6, 5]
    """
    if size <= round_to:
        return size
    kept = int(size * (1 - ratio) / round_to + 0.5) * round_to
    return min(size, max(round_to, kept))


def weakest(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` lowest, by index; ties go to the later ones."""
    order = np.lexsort((-np.arange(len(scores)), scores))
    return np.sort(order[:count])


def choose(
    groups: Sequence[Group],
    scores: Sequence[np.ndarray],
    ratio: float,
    scope: str,
    round_to: int,
    firsts: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """The units that go, for each group; `ratio` is of the `firsts`, by default of the units that there are.

    scope "layer": the same share of each group. "global": the lowest of all groups, each group's scores divided by
    their mean; a group keeps at least one multiple.
    """
    sizes = [len(each) for each in scores] if firsts is None else list(firsts)
    if scope == "layer":
        counts = [keep_count(first, ratio, _step(group, round_to)) for first, group in zip(sizes, groups)]
    else:
        relative = [each / max(each.mean(), 1e-30) for each in scores]
        every = np.concatenate(relative)
        limit = np.quantile(every, max(0.0, 1 - (1 - ratio) * sum(sizes) / len(every)))
        left = [int((each > limit).sum()) for each in relative]
        counts = [
            keep_count(first, 1 - count / first, _step(group, round_to))
            for first, count, group in zip(sizes, left, groups)
        ]
    return [weakest(each, max(0, len(each) - count)) for each, count in zip(scores, counts)]


def _step(group: Group, round_to: int) -> int:
    """Units that make up a multiple of `round_to` channels."""
    width = max(1, len(group.axes[group.roots[0]][0]))
    return max(1, round_to // width)


def removed(groups: Iterable[tuple[Group, np.ndarray]]) -> dict[Axis, np.ndarray]:
    """Indices that go, by axis."""
    found: dict[Axis, list[np.ndarray]] = {}
    for group, units in groups:
        for axis, indices in group.axes.items():
            found.setdefault(axis, []).append(Units.made(indices).of(units))
    return {axis: np.unique(np.concatenate(parts)) for axis, parts in found.items() if sum(map(len, parts))}

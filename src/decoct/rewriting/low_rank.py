"""LowRank: layers as products of two thinner ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.rewriting._factors import Kind, Matrix, as_layers, as_matrix, as_pair, directions, split
from decoct.rewriting._layers import Kept, Rewritten, chosen, put_in_place, tied
from decoct.rewriting._watching import rows, watch
from decoct.training.compression import Compressed, Evidence, Scheme

TYPES: Mapping[Kind, type[nn.Module]] = {"linear": nn.Linear, "convolution": nn.Conv2d, "embedding": nn.Embedding}
INSIDE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules of torch whose code reads the weights of the layers inside them."""


class LowRank(Scheme):
    """Linear layers, convolutions and embeddings become two thinner layers, by singular value decomposition.

    Linear: `[in, r]` then `[r, out]`. Convolution: k x k to r channels, then 1 x 1. Embedding: of width r, then a
    linear layer. Give one of `rank`; `ratio`, the share of each layer's weights that is left (0.5 by default);
    `energy`, the share of squared singular values that is kept. Ranks from ratio and energy are multiples of
    `multiple`. `weighted`: singular values of the layer's outputs on training data instead of its weights, which makes
    the error of its outputs least (Yu and Wu 2023; the solution of SVD-LLM, without its inverse). Layers that would not
    get smaller stay; two layers with nothing between them count as one, so that rounds go on. `kinds`: which kinds of
    layers are rewritten. `layers`: their paths, `*` for any part. `rank`: the width between the two layers. `ratio`:
    the share of each layer's weights that is left. `energy`: the share of squared singular values that is kept.

    Eckart and Young 1936; Zhang et al. 2016, arXiv 1505.06798 (convolutions).
    """

    use: ClassVar[str] = "low_rank"
    rank: int | None = Field(default=None, ge=1)
    ratio: float | None = Field(default=None, gt=0, lt=1)
    energy: float | None = Field(default=None, gt=0, le=1)
    weighted: bool = False
    multiple: int = Field(default=8, ge=1)
    kinds: tuple[Kind, ...] = Field(default=("linear", "convolution", "embedding"), min_length=1)
    layers: tuple[str, ...] = Field(default=("*",), min_length=1)

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        given = [name for name in ("rank", "ratio", "energy") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of rank, ratio, energy (given: {', '.join(given)})")
        return self

    def stage(self, number: int, count: int) -> Self:
        if self.rank is not None:
            raise RecipeError("low_rank: rank is reached at once; give ratio or energy for recover: iterative")
        if self.energy is not None:
            return self.replace(energy=self.energy ** (1 / count))
        return self.replace(ratio=self._ratio ** (number / count))

    @property
    def _ratio(self) -> float:
        return 0.5 if self.ratio is None else self.ratio

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        found: dict[str, Rewritten | Kept] = {}
        matrices: dict[str, Matrix] = {}
        for path, verdict in self._candidates(module):
            found[path] = verdict if isinstance(verdict, Kept) else Kept(verdict.full, "")
            if isinstance(verdict, Matrix):
                matrices[path] = verdict
        moments: dict[str, Tensor] = {}
        idle: set[str] = set()
        if self.weighted and matrices:
            idle = watch_outputs(module, evidence, matrices, moments)
        for path, matrix in matrices.items():
            if path in idle:
                found[path] = Kept(matrix.full, "it did not run on the data")
            else:
                found[path] = self._rewritten(module.get_submodule(path), matrix, moments.get(path))
        return put_in_place(self, module, found, "rank", evidence)

    def _candidates(self, module: nn.Module) -> Iterator[tuple[str, Matrix | Kept]]:
        """Each layer of the kinds asked for, or the reason why it stays."""
        layers, safe = chosen(module, self.layers, self.protect)
        shared = tied(module)
        inside = {id(each) for part in module.modules() if isinstance(part, INSIDE) for each in part.modules()}
        done: set[int] = set()
        for path, layer in layers:
            if id(layer) in done:
                continue
            pair = as_pair(layer)
            done |= {id(each) for each in pair or ()}
            matrix = as_matrix(layer)
            if matrix is None:
                if isinstance(layer, tuple(TYPES[kind] for kind in self.kinds)):
                    yield path, Kept(_rank_of(layer), _why_unknown(layer))
            elif matrix.kind in self.kinds:
                why = ""
                if path in safe:
                    why = "protected"
                elif any(id(each) in shared for each in layer.parameters()):
                    why = "its weight is shared with another module"
                elif id(layer) in inside:
                    why = "torch's attention and transformer layers read its weight directly"
                yield path, Kept(matrix.rank or matrix.full, why) if why else matrix

    def _rewritten(self, layer: nn.Module, matrix: Matrix, moment: Tensor | None) -> Rewritten | Kept:
        before = matrix.rank or matrix.full
        left, energies = directions(matrix.weight, moment)
        rank, m_and_n = self._rank(matrix, energies), sum(matrix.weight.shape)
        if rank < 1:
            return Kept(before, f"too small: ratio {self._ratio:.3g} of it leaves no rank of {self.multiple}")
        if matrix.rank is not None and rank >= matrix.rank:
            return Kept(before, f"it has rank {matrix.rank} already", done=True)
        if rank * m_and_n >= matrix.weights:
            return Kept(before, f"rank {rank} would take {rank * m_and_n} weights, it has {matrix.weights}")
        inner, outer = split(matrix.weight, left[:, :rank])
        kept = float(energies[:rank].sum() / energies.sum().clamp(min=1e-300))
        note = f"keeps {kept:.4f} of the energy of its {'outputs' if self.weighted else 'weights'}"
        return Rewritten(as_layers(layer, matrix, inner, outer), before, rank, note)

    def _rank(self, matrix: Matrix, energies: Tensor) -> int:
        """The rank of one layer; 0 where the ratio leaves less than one multiple."""
        m, n = matrix.weight.shape
        if self.rank is not None:
            return self.rank
        if self.energy is None:
            return int(self._ratio * m * n / (m + n)) // self.multiple * self.multiple
        reached = energies.cumsum(0) / energies.sum().clamp(min=1e-300)
        enough = int((reached < self.energy - 1e-12).sum()) + 1
        return math.ceil(enough / self.multiple) * self.multiple


def watch_outputs(
    module: nn.Module, evidence: Evidence, matrices: Mapping[str, Matrix], moments: dict[str, Tensor]
) -> set[str]:
    """Adds up the second moments of Qᵀ(y - b) of each layer into `moments`; returns the layers that did not run."""
    spans = {path: torch.linalg.qr(each.weight)[0] for path, each in matrices.items()}

    def take(path: str, features: Mapping[str, Tensor]) -> None:
        given = rows(features[path], channel=matrices[path].channel)
        bias = matrices[path].bias
        if bias is not None:
            given = given - bias.detach().cpu().double()
        seen = given @ spans[path]
        moments[path] = moments.get(path, torch.zeros((), dtype=seen.dtype)) + seen.T @ seen

    return watch(module, evidence, list(matrices), take)


def _rank_of(layer: nn.Module) -> int:
    weight = layer._parameters.get("weight")
    return 0 if weight is None else min(len(weight), weight[0].numel())


def _why_unknown(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"it works in {layer.groups} groups of channels"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "it bounds the norm of its vectors (max_norm)"
    return f"it is a {type(layer).__name__}, no plain layer of torch.nn"

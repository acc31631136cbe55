"""Weights clustered to a codebook."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.clustered import Clustered, bits_for, kind_of, pack
from decoct.sharing._kmeans import kmeans, nearest
from decoct.training.callback import Callback
from decoct.training.compression import Change, Compressed, Evidence, Scheme, protected
from decoct.training.projection import Projection

LOOSE = (nn.RNNBase, nn.MultiheadAttention, nn.Conv3d, nn.modules.conv._ConvTransposeNd)
"""Layers with weights that have no form with a codebook."""


class Codebook(Scheme):
    """Gives each layer few different weights: a codebook of centroids, and for each weight a packed index.

    `clusters`: centroids of a layer, 2 to 256; an index takes 1, 2, 4 or 8 bits in the artifact and in the ONNX file.
    k-means of the layer's weights from a start `init`, evenly over their range or at their quantiles; then the
    centroids train. Layers of fewer than `smallest` weights stay; so do recurrent layers, transposed convolutions and
    an attention's joint projection. Where a layer was pruned, one centroid is zero and stays so. `embeddings`: tables
    of embeddings get codebooks too. Han, Mao & Dally 2016, "Deep Compression".
    """

    use: ClassVar[str] = "codebook"

    clusters: int = Field(default=16, ge=2, le=256)
    init: Literal["linear", "quantile"] = "linear"
    embeddings: bool = True
    smallest: int = Field(default=512, ge=1)

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        made = copy.deepcopy(module)
        kept = protected(made, self.protect)
        changes: list[Change] = []
        replaced: dict[int, nn.Module] = {}
        books: dict[int, tuple[Tensor, nn.Parameter, int]] = {}
        for path, each in list(made.named_modules()):
            kind = kind_of(each)
            if kind is None or path in kept or (isinstance(each, nn.Embedding) and not self.embeddings):
                changes += _loose(path, each)
                continue
            weight = each.weight
            assert isinstance(weight, Tensor)
            source = each.centroids if isinstance(each, Clustered) else weight
            before = len(weight.unique())
            if weight.numel() < self.smallest:
                note = f"stays: {weight.numel()} weights are fewer than smallest ({self.smallest})"
                changes.append(Change(path, "clusters", before, before, note))
                continue
            if id(source) not in books:
                books[id(source)] = self._book(weight.detach())
            index, centroids, bits = books[id(source)]
            replaced[id(each)] = kind(each, index, centroids, bits)
            changes.append(Change(path, "clusters", before, centroids.numel()))
        if not replaced:
            reasons = "; ".join(f"{each.path} {each.note}" for each in changes[:6])
            raise RecipeError(f"{type(module).__name__}: no layer can have a codebook{reasons and f' ({reasons})'}")
        return Compressed(_with(made, replaced), tuple(changes))

    def _book(self, weight: Tensor) -> tuple[Tensor, nn.Parameter, int]:
        """Packed index, centroids and bits of a weight."""
        values = weight.double().cpu().numpy().ravel()
        zeros = values == 0
        if zeros.mean() * self.clusters >= 1:
            found = np.union1d(kmeans(values[~zeros], self.clusters - 1, self.init), [0.0])
        else:
            found = kmeans(values, self.clusters, self.init)
        found = np.resize(found, max(2, len(found)))
        bits = bits_for(len(found))
        codes = torch.from_numpy(nearest(values, found)).to(weight.device)
        centroids = torch.from_numpy(found).to(weight)
        return pack(codes, bits), nn.Parameter(centroids), bits

    def stage(self, number: int, count: int) -> Self:
        """Fewer clusters in each round, from 256 down, in equal ratios."""
        return self.replace(clusters=round(256 * (self.clusters / 256) ** (number / count)))

    def hold(self, module: nn.Module) -> Callback | None:
        """Keeps at zero the centroids that are, and weights of layers without a codebook that were pruned."""
        zeros = {path: each.centroids for path, each in _clustered(module) if bool((each.centroids == 0).any())}
        zeros |= _pruned(module)
        return Projection(zeros, {path: each.detach() != 0 for path, each in zeros.items()}) if zeros else None


def _clustered(module: nn.Module) -> Iterator[tuple[str, Clustered]]:
    for path, each in module.named_modules():
        if isinstance(each, Clustered):
            yield path, each


def _pruned(module: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of plain layers, by name, some of which are zero and not all."""
    books = {id(each) for _, layer in _clustered(module) for each in layer._parameters.values()}
    return {
        name: each
        for name, each in module.named_parameters()
        if "weight" in name and each.ndim > 1 and id(each) not in books and 0 < each.count_nonzero() < each.numel()
    }


def _with(root: nn.Module, replaced: dict[int, nn.Module]) -> nn.Module:
    """The module with others in place of some, by identity."""
    if id(root) in replaced:
        return replaced[id(root)]
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
    return root


def _loose(path: str, module: nn.Module) -> list[Change]:
    """Says that a layer's weights stay as they are."""
    if not isinstance(module, LOOSE):
        return []
    count = sum(each.numel() for each in module._parameters.values() if each is not None)
    return [Change(path, "clusters", count, count, f"stays: a {type(module).__name__} has no form with a codebook")]

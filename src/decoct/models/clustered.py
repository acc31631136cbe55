"""Layers whose weights are members of a codebook: packed indices, and centroids that train."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bits_for(clusters: int) -> int:
    """Bits of one packed index: 1, 2, 4 or 8, so that whole indices fill a byte.

    >>> [bits_for(clusters) for clusters in (2, 4, 16, 17, 256)]
    [1, 2, 4, 8, 8]
    """
    assert 2 <= clusters <= 256, clusters
    return next(bits for bits in (1, 2, 4, 8) if 2**bits >= clusters)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits as bytes, the first in the lowest bits; the last byte is filled with zeros.

    >>> pack(torch.tensor([1, 2, 3]), 4)
    tensor([33,  3], dtype=torch.uint8)
    """
    per = 8 // bits
    flat = codes.reshape(-1).long()
    flat = F.pad(flat, (0, -len(flat) % per)).view(-1, per)
    scale = 2 ** (bits * torch.arange(per, device=flat.device))
    return (flat * scale).sum(-1).to(torch.uint8)


def unpack(index: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of packed bytes, int32.

    >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, 3)
    tensor([1, 2, 3], dtype=torch.int32)
    """
    if bits == 8:
        return index.int()
    per = 8 // bits
    scale = torch.tensor([2 ** (bits * place) for place in range(per)], dtype=torch.int32, device=index.device)
    codes = torch.div(index.int().unsqueeze(-1), scale, rounding_mode="trunc") & (2**bits - 1)
    flat = codes.reshape(-1)
    return flat if count % per == 0 else flat[:count]


class Clustered(nn.Module):
    """A layer with `weight = centroids[index]`: the buffer `index` is packed, the parameter `centroids` trains.

    The gradient of a centroid is the sum over its members. Attributes are those of the layer that it stands for.
    Han, Mao & Dally 2016, "Deep Compression".
    """

    index: Tensor
    centroids: nn.Parameter
    bias: nn.Parameter | None
    weight_shape: tuple[int, ...]
    bits: int

    def __init__(self, like: nn.Module, index: Tensor, centroids: nn.Parameter, bits: int) -> None:
        super().__init__()
        for name in self.kept():
            setattr(self, name, vars(like)[name])
        self.weight_shape, self.bits = tuple(_weight_of(like).shape), bits
        self.register_buffer("index", index)
        self.register_parameter("centroids", centroids)
        self.register_parameter("bias", like._parameters.get("bias"))
        self.train(like.training)

    @classmethod
    @abstractmethod
    def kept(cls) -> tuple[str, ...]:
        """Names of the attributes that it has from the layer it stands for."""

    @property
    def weight(self) -> Tensor:
        """The weights as the layer uses them, made anew at each call."""
        count = 1
        for size in self.weight_shape:
            count *= size
        codes = unpack(self.index, self.bits, count)
        return F.embedding(codes, self.centroids.unsqueeze(-1)).view(self.weight_shape)

    def extra_repr(self) -> str:
        """Shape of the weight and number of centroids."""
        return f"{list(self.weight_shape)}, clusters={self.centroids.numel()}"


class ClusteredLinear(Clustered):
    """`nn.Linear` with a codebook."""

    @classmethod
    def kept(cls) -> tuple[str, ...]:
        return ("in_features", "out_features")

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _ClusteredConv(Clustered):
    @classmethod
    def kept(cls) -> tuple[str, ...]:
        names = "in_channels out_channels kernel_size stride padding dilation groups padding_mode output_padding"
        return (*names.split(), "transposed", "_reversed_padding_repeated_twice")

    def padded(self, x: Tensor) -> tuple[Tensor, Any]:
        """The input, padded where zeros will not do, and the padding that is left to the convolution."""
        settings = vars(self)
        if settings["padding_mode"] == "zeros":
            return x, settings["padding"]
        around = settings["_reversed_padding_repeated_twice"]
        return F.pad(x, around, mode=settings["padding_mode"]), (0,) * len(settings["kernel_size"])


class ClusteredConv1d(_ClusteredConv):
    """`nn.Conv1d` with a codebook."""

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self.padded(x)
        each = vars(self)
        return F.conv1d(x, self.weight, self.bias, each["stride"], padding, each["dilation"], each["groups"])


class ClusteredConv2d(_ClusteredConv):
    """`nn.Conv2d` with a codebook."""

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self.padded(x)
        each = vars(self)
        return F.conv2d(x, self.weight, self.bias, each["stride"], padding, each["dilation"], each["groups"])


class ClusteredEmbedding(Clustered):
    """`nn.Embedding` with a codebook."""

    @classmethod
    def kept(cls) -> tuple[str, ...]:
        return ("num_embeddings", "embedding_dim", "padding_idx")

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight, vars(self)["padding_idx"])


KINDS: dict[type[nn.Module], type[Clustered]] = {
    nn.Linear: ClusteredLinear,
    nn.Conv1d: ClusteredConv1d,
    nn.Conv2d: ClusteredConv2d,
    nn.Embedding: ClusteredEmbedding,
}
"""Layers that may have a codebook, and what stands for them then."""


def kind_of(module: nn.Module) -> type[Clustered] | None:
    """The class that stands for a layer with a codebook; None where there is none."""
    if isinstance(module, Clustered):
        return type(module)
    found = next((kind for layer, kind in KINDS.items() if isinstance(module, layer)), None)
    limited = isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq)
    return None if limited else found


def _weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight

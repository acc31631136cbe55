"""A layer as one matrix, its product of two thinner ones, and the layers of either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["linear", "convolution", "embedding"]
RIDGE = 1e-6
"""Weight of the plain kernel beside statistics of data, so that directions without data keep an order."""


@dataclass(frozen=True)
class Matrix:
    """A layer y = W x + b as its matrix `[m, n]` in float64 on the CPU.

    `rank`: of the two layers that make it up already, else None. `channel`: the axis of y that has m entries.
    """

    kind: Kind
    weight: Tensor
    bias: Tensor | None
    rank: int | None
    channel: int

    @property
    def full(self) -> int:
        """The highest rank it can have."""
        return min(self.weight.shape)

    @property
    def weights(self) -> int:
        """Weights of the layer or layers as they are."""
        m, n = self.weight.shape
        return m * n if self.rank is None else self.rank * (m + n)


def as_matrix(layer: nn.Module) -> Matrix | None:
    """The matrix of a linear layer, convolution or embedding, or of two in a row; None for all else.

    >>> as_matrix(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 5))).weight.shape
    torch.Size([5, 6])
    """
    pair = as_pair(layer)
    if pair is not None:
        first, second = (as_matrix(each) for each in pair)
        assert first is not None
        assert second is not None
        return Matrix(first.kind, second.weight @ first.weight, second.bias, len(first.weight), second.channel)
    if type(layer) is nn.Linear:
        return Matrix("linear", _double(layer.weight), layer.bias, None, -1)
    if type(layer) is nn.Conv2d and layer.groups == 1:
        return Matrix("convolution", _double(layer.weight).flatten(1), layer.bias, None, 1)
    if type(layer) is nn.Embedding and layer.max_norm is None:
        return Matrix("embedding", _double(layer.weight).T, None, None, -1)
    return None


def as_pair(layer: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Two layers with nothing between them, as `low_rank` makes them."""
    if type(layer) is not nn.Sequential or len(layer) != 2:
        return None
    first, second = layer
    if type(first) is nn.Embedding and type(second) is nn.Linear and second.bias is None and first.max_norm is None:
        return first, second
    if type(first) is nn.Linear and type(second) is nn.Linear and first.bias is None:
        return first, second
    pointwise = type(second) is nn.Conv2d and second.kernel_size == (1, 1) and _plain(second)
    if pointwise and type(first) is nn.Conv2d and first.groups == 1 and first.bias is None:
        return first, second
    return None


def directions(weight: Tensor, moment: Tensor | None) -> tuple[Tensor, Tensor]:
    """Orthonormal directions `[m, k]` of the output, strongest first, and the energy of each; k = min(m, n).

    `moment` None: left singular vectors of the weight and its squared singular values. Else the second moments of
    Qᵀ(y - b), Q from the QR decomposition of the weight: principal directions of what the layer gave.
    """
    if moment is None:
        wide = weight.shape[1] > weight.shape[0]
        square = torch.linalg.qr(weight.T, mode="r").R.T if wide else weight  # the same left vectors and values
        left, values, _ = torch.linalg.svd(square, full_matrices=False)
        return left, values.square()
    span, coefficients = torch.linalg.qr(weight)
    plain = coefficients @ coefficients.T
    scale = RIDGE * moment.trace() / plain.trace().clamp(min=torch.finfo(plain.dtype).tiny)
    energies, vectors = torch.linalg.eigh(moment + scale * plain)
    return span @ vectors.flip(1), energies.flip(0).clamp(min=0)


def split(weight: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Inner `[r, n]` and outer `[m, r]` with outer @ inner = U Uᵀ W for directions U `[m, r]`, evenly scaled."""
    inner = left.T @ weight
    norms = inner.norm(dim=1)
    scale = torch.where(norms > 0, norms, torch.ones_like(norms)).sqrt()
    return inner / scale[:, None], left * scale


def as_layers(layer: nn.Module, matrix: Matrix, inner: Tensor, outer: Tensor) -> nn.Sequential:
    """The two layers of a product, of the original's settings, dtype and device."""
    pair = as_pair(layer)
    head = layer if pair is None else pair[0]
    rank, m, has_bias = len(inner), len(outer), matrix.bias is not None
    first: nn.Module
    second: nn.Module
    if isinstance(head, nn.Conv2d):
        first = like_convolution(head, head.in_channels, rank, kernel=head.kernel_size, bias=False)
        second = nn.Conv2d(rank, m, 1, bias=has_bias)
        inner, outer = inner.unflatten(1, (head.in_channels, *head.kernel_size)), outer[:, :, None, None]
    elif isinstance(head, nn.Embedding):
        first = nn.Embedding(len(head.weight), rank, head.padding_idx, sparse=head.sparse)
        first.scale_grad_by_freq = head.scale_grad_by_freq
        second, inner = nn.Linear(rank, m, bias=False), inner.T
    else:
        assert isinstance(head, nn.Linear)
        first, second = nn.Linear(head.in_features, rank, bias=False), nn.Linear(rank, m, bias=has_bias)
    model = next(head.parameters())
    both = nn.Sequential(first, second).to(model.device, model.dtype)
    set_weight(both[0], inner, None)
    set_weight(both[1], outer, matrix.bias)
    return both


def like_convolution(
    old: nn.Conv2d, inputs: int, outputs: int, *, kernel: tuple[int, ...], bias: bool, groups: int = 1
) -> nn.Conv2d:
    """A convolution with the stride, padding and dilation of another."""
    return nn.Conv2d(
        inputs,
        outputs,
        (kernel[0], kernel[1]),
        stride=_two(old.stride),
        padding=old.padding if isinstance(old.padding, str) else _two(old.padding),
        dilation=_two(old.dilation),
        groups=groups,
        bias=bias,
        padding_mode=old.padding_mode,
    )


def set_weight(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Copies numbers into a layer."""
    with torch.no_grad():
        layer.get_parameter("weight").copy_(weight)
        if bias is not None:
            layer.get_parameter("bias").copy_(bias)


def _two(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]


def _plain(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.stride == (1, 1) and layer.padding in ((0, 0), "valid")


def _double(weight: Tensor) -> Tensor:
    return weight.detach().cpu().double()

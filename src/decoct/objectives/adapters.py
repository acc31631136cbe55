"""Adapters: how features of unlike shapes meet. Tokens become maps, sizes and widths become equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._numeric import shape

Adapter = Literal["auto", "none", "conv", "regressor", "linear", "pool", "heads"]
"""What stands between student and teacher features.

auto: what the method needs and no more; none: nothing, unlike shapes are refused; conv: a 1×1 convolution with batch
norm; regressor: conv and a ReLU; linear: one linear map over the width, without batch norm, so that batches may be
split; pool: both sides averaged over their positions, then linear where widths differ; heads: attention heads mixed by
learned weights. All but none also turn tokens into maps and resize the student's map where that is needed.
"""

Widths = Literal["any", "connector", "regressor", "linear", "heads"]
"""What a method does about unlike widths under auto: nothing, or which adapter it takes."""

PREFIXES = (0, 1, 2, 4, 5)
"""How many tokens may stand before the grid of a vision transformer: class, distillation, four registers."""


class Bridge(nn.Module):
    """Views of both features under which they can be compared; `text` says what they are."""

    def __init__(self, student: list[nn.Module], teacher: list[nn.Module]) -> None:
        super().__init__()
        self.student = nn.Sequential(*student)
        self.teacher = nn.Sequential(*teacher)

    @property
    def text(self) -> str:
        """The adapters by name, "none" where there are none."""
        sides = {"": self.student, "teacher's ": self.teacher}
        return ", ".join(f"{who}{each}" for who, parts in sides.items() for each in parts) or "none"

    @property
    def moves(self) -> bool:
        """Whether positions of the student's feature are no longer those of its tokens."""
        return any(isinstance(each, Grid | Resize | Average) for each in self.student)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(student), self.teacher(teacher)


class Grid(nn.Module):
    """Tokens `[B, N, D]` as the map `[B, D, √n, √n]`: leading tokens dropped, the rest laid out row by row."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.prefix = prefix_tokens(tokens)
        self.side = math.isqrt(tokens - self.prefix)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.prefix :].mT.reshape(len(x), x.shape[2], self.side, self.side)

    def __str__(self) -> str:
        dropped = f" without the first {self.prefix}" if self.prefix else ""
        return f"tokens{dropped} as a {self.side}×{self.side} map"


class Resize(nn.Module):
    """A map at another size: adaptively average-pooled where it is larger, interpolated bilinearly where smaller."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] >= self.size[0] and x.shape[3] >= self.size[1]:
            return F.adaptive_avg_pool2d(x, self.size)
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False)

    def __str__(self) -> str:
        return f"resized to {self.size[0]}×{self.size[1]}"


def as_map(label: str, x: Tensor) -> Tensor:
    """A map of a map, of tokens (see Grid) or of a vector, which becomes `[B, D, 1, 1]`."""
    if x.ndim == 4:
        return x
    if x.ndim == 3:
        result: Tensor = Grid(x.shape[1])(x)
        return result
    if x.ndim == 2:
        return x[:, :, None, None]
    raise RecipeError(f"{label}: features {shape(x)}; allowed: maps [B, C, H, W], tokens [B, N, D], vectors [B, D]")


class Average(nn.Module):
    """The mean over positions of a map or of tokens: `[B, D]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1)

    def __str__(self) -> str:
        return "averaged over positions"


class Norm(nn.Module):
    """Batch norm over the second axis, which takes a lone number for each channel by its running statistics.

    torch's own refuses that in training; here the last batch of an epoch may be a single sample.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        shaped = x if x.ndim == 4 else x[:, :, None, None]
        norm = self.norm
        if norm.training and shaped.numel() == shaped.shape[1]:
            made = F.batch_norm(shaped, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            made = norm(shaped)
        return made.reshape(x.shape)


class Width(nn.Module):
    """A learned map to another width: 1×1 convolution of maps (perhaps with batch norm and ReLU), else linear."""

    def __init__(self, width: int, wanted: int, *, kind: Literal["conv", "regressor", "linear"], maps: bool) -> None:
        super().__init__()
        self.name = f"{kind} {width} to {wanted}"
        layers: list[nn.Module]
        if not maps or kind == "linear":
            layers = [nn.Conv2d(width, wanted, 1) if maps else nn.Linear(width, wanted)]
        else:
            layers = [nn.Conv2d(width, wanted, 1, bias=False), Norm(wanted)]
            layers += [nn.ReLU()] if kind == "regressor" else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result

    def __str__(self) -> str:
        return self.name


class Heads(nn.Module):
    """Attention `[B, H, L, L]` with other heads: each a learned weighted mean of those there are.

    The weights of a mean are a softmax, so that probabilities stay probabilities. Where heads are as many as before,
    each begins near its own; else they begin equal, with small random differences.
    """

    def __init__(self, heads: int, wanted: int) -> None:
        super().__init__()
        start = 0.02 * torch.randn(wanted, heads)
        self.logits = nn.Parameter(start + 4 * torch.eye(heads) if heads == wanted else start)
        self.name = f"heads {heads} to {wanted}"

    @property
    def weight(self) -> Tensor:
        """`[wanted, heads]`, rows sum to 1."""
        return self.logits.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("th,bhij->btij", self.weight, x)

    def __str__(self) -> str:
        return self.name


class Needed:
    """What a method needs of a pair: `widths`, whether `places` must be equal, whether features may be `reshaped`."""

    def __init__(self, label: str, adapter: Adapter, widths: Widths, *, places: bool, reshaped: bool) -> None:
        self.label, self.adapter, self.widths = label, adapter, widths
        self.places, self.reshaped = places, reshaped


def prefix_tokens(tokens: int) -> int:
    """How many leading tokens stand before a square grid: the least of 0, 1, 2, 4 and 5 that leaves one.

    >>> prefix_tokens(197), prefix_tokens(196), prefix_tokens(198)
    (1, 0, 2)
    """
    for prefix in PREFIXES:
        rest = tokens - prefix
        if rest > 0 and math.isqrt(rest) ** 2 == rest:
            return prefix
    raise RecipeError(
        f"{tokens} tokens are no square grid with {', '.join(map(str, PREFIXES))} tokens before it; "
        "choose a layer that gives a map"
    )


def bridge(needed: Needed, own: str, student: Tensor, theirs: str, teacher: Tensor) -> Bridge:
    """The adapters between two features; RecipeError naming both paths and shapes where none can join them."""

    def refuse(reason: str) -> RecipeError:
        return RecipeError(
            f"{needed.label}: student {own} {shape(student)} and teacher {theirs} {shape(teacher)}; {reason}"
        )

    if needed.adapter == "none":
        return Bridge([], [])
    if needed.adapter == "heads" or (needed.adapter == "auto" and needed.widths == "heads"):
        return _heads(needed, student, teacher, refuse)
    sides: tuple[list[nn.Module], list[nn.Module]] = ([], [])
    if needed.reshaped or needed.adapter == "pool":
        _reshape(needed, student, teacher, sides, refuse)
    with torch.no_grad():
        s, t = student, teacher
        for each in sides[0]:
            s = each(s)
        for each in sides[1]:
            t = each(t)
    kind = _kind(needed, s, t)
    if kind is not None:
        if s.ndim not in (2, 3, 4) or s.ndim != t.ndim:
            raise refuse("allowed: maps [B, C, H, W], tokens [B, N, D] and vectors [B, D]")
        if kind in ("conv", "regressor") and s.ndim != 4 and needed.adapter != "auto":
            raise refuse(f"adapter is {kind!r}, which is for maps [B, C, H, W]; use linear or auto")
        axis = 1 if s.ndim == 4 else -1
        sides[0].append(Width(s.shape[axis], t.shape[axis], kind=kind, maps=s.ndim == 4))
    return Bridge(*sides)


def _kind(needed: Needed, student: Tensor, teacher: Tensor) -> Literal["conv", "regressor", "linear"] | None:
    """Which learned map stands between the widths, if any."""
    if needed.adapter in ("conv", "regressor", "linear"):
        return needed.adapter
    if needed.widths == "any" or (student.ndim == teacher.ndim and _width(student) == _width(teacher)):
        return None
    if student.ndim < 4 or needed.adapter == "pool" or needed.widths == "linear":
        return "linear"
    return "regressor" if needed.widths == "regressor" else "conv"


def _width(x: Tensor) -> int:
    return x.shape[1] if x.ndim == 4 else x.shape[-1]


def _heads(needed: Needed, student: Tensor, teacher: Tensor, refuse: Callable[[str], RecipeError]) -> Bridge:
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[2:] != teacher.shape[2:]:
        raise refuse("attention is [B, H, L, L] with equal L on both sides; only the heads may differ")
    heads, wanted = student.shape[1], teacher.shape[1]
    return Bridge([] if needed.adapter == "auto" and heads == wanted else [Heads(heads, wanted)], [])


def _reshape(
    needed: Needed,
    student: Tensor,
    teacher: Tensor,
    sides: tuple[list[nn.Module], list[nn.Module]],
    refuse: Callable[[str], RecipeError],
) -> None:
    """Adds what makes both features maps, both tokens or both vectors, and of one size where places must be equal."""
    both = (student, teacher)
    if any(each.ndim not in (2, 3, 4) for each in both):
        raise refuse("allowed: maps [B, C, H, W], tokens [B, N, D] and vectors [B, D]")
    if needed.adapter == "pool" or (student.ndim != teacher.ndim and min(each.ndim for each in both) == 2):
        for side, each in zip(sides, both):
            side.extend([Average()] if each.ndim > 2 else [])
        return
    tokens = student.ndim == teacher.ndim == 3
    if student.ndim == teacher.ndim and not (tokens and student.shape[1] != teacher.shape[1]):
        if student.ndim == 4 and needed.places and student.shape[2:] != teacher.shape[2:]:
            sides[0].append(Resize(*teacher.shape[2:]))
        return
    sizes = []
    for side, each in zip(sides, both):
        grid = _grid(each, refuse) if each.ndim == 3 else None
        side.extend([grid] if grid is not None else [])
        sizes.append((grid.side, grid.side) if grid is not None else tuple(each.shape[2:]))
    if needed.places and sizes[0] != sizes[1]:
        sides[0].append(Resize(*sizes[1]))


def _grid(x: Tensor, refuse: Callable[[str], RecipeError]) -> Grid:
    try:
        return Grid(x.shape[1])
    except RecipeError as error:
        raise refuse(str(error)) from None

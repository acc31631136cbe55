"""RepeatHeads: grouped keys and values become as many heads as the attention that follows expects."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RepeatHeads(nn.Module):
    """`[..., lead + parts * groups * width]` -> `[..., lead + parts * heads * width]`.

    The first `lead` features pass as they are (queries, where one layer projects all three). Each of `parts` blocks
    that follow (keys, values) holds `groups` heads of `width` features; each is repeated heads / groups times in place.

    >>> RepeatHeads(heads=4, groups=2, width=1)(torch.tensor([5.0, 7.0])).tolist()
    [5.0, 5.0, 7.0, 7.0]
    """

    def __init__(self, heads: int, groups: int, width: int, *, parts: int = 1, lead: int = 0) -> None:
        super().__init__()
        assert heads % groups == 0, (heads, groups)
        self.heads, self.groups, self.width, self.parts, self.lead = heads, groups, width, parts, lead

    def forward(self, x: Tensor) -> Tensor:
        rest = x[..., self.lead :].unflatten(-1, (self.parts * self.groups, 1, self.width))
        repeated = rest.expand(*rest.shape[:-2], self.heads // self.groups, self.width).flatten(-3)
        if not self.lead:
            return repeated
        return torch.cat([x[..., : self.lead], repeated], -1)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, groups={self.groups}, width={self.width}, parts={self.parts}, lead={self.lead}"

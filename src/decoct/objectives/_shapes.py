"""Shapes of the pure functions' arguments, as jaxtyping annotations: one letter is one size within a call.

They are checked under test (tests/objectives/test_shapes.py); elsewhere they are read by people and cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Integer
else:
    try:
        from jaxtyping import Bool, Float, Integer
    except ImportError:  # jaxtyping is a development dependency

        class _Unchecked:
            """`Float[Tensor, "B C"]` as Tensor."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Integer = _Unchecked

Loss = Float[Tensor, ""]
"""One number."""
Logits = Float[Tensor, "*B C"]
"""Class axis last, items before it."""
Target = Integer[Tensor, "*B"]
"""Class ids of the items."""
Mask = Bool[Tensor, "*B"]
"""True where an item counts."""
AnyMask = Bool[Tensor, "..."]
"""True where an item counts; the axes are checked by the function."""
Same = Float[Tensor, "*S"]
"""Any shape, the same for all arguments."""
Features = Float[Tensor, "B ..."]
"""Samples first; the rest is free."""
Maps = Float[Tensor, "B C H W"]
"""Feature maps."""
Tokens = Float[Tensor, "B N D"]
"""Token features."""
Tokenwise = Float[Tensor, "*B D"]
"""Vectors, positions before them."""
Heads = Float[Tensor, "B R L _"]
"""Queries, keys or values by head; their width is free."""
Attention = Float[Tensor, "B H L L"]
"""Attention of each position to each."""
OtherAttention = Float[Tensor, "B G L L"]
"""The same with other heads."""
Places = Bool[Tensor, "B L"]
"""True where a position counts."""
Boxes = Float[Tensor, "B M 4"]
"""x₀, y₀, x₁, y₁ of each box."""
HeadWeights = Float[Tensor, "G H"]
"""The teacher's heads by the student's."""
Embedding = Float[Tensor, "B D"]
"""One vector a sample."""
Kept = Bool[Tensor, "B K"]
"""Which of the others count, for each sample."""
ItemWeights = Float[Tensor, "*B"]
"""A weight for each item."""
TeacherTokenwise = Float[Tensor, "*B E"]
"""Vectors of another width, positions before them."""
HeadOfLogits = Float[Tensor, "V D"]
"""Weights that make logits of vectors."""
TeacherHeadOfLogits = Float[Tensor, "V E"]
"""The same of the teacher's width."""
Sequences = Float[Tensor, "B L V"]
"""Logits by position."""
OtherSequences = Float[Tensor, "B M W"]
"""The same with another length and vocabulary."""
OtherPlaces = Bool[Tensor, "B M"]
"""True where a position of these counts."""

"""Heads: attention heads removed."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

from torch import nn

from decoct.errors import RecipeError
from decoct.pruning._attention import cut_heads, with_slim_attention
from decoct.pruning._rounds import InRounds
from decoct.pruning._scores import Scores
from decoct.training.compression import Compressed, Evidence, protected


class Heads(InRounds):
    """Removes attention heads of transformers' encoders and of timm's and torchvision's vision transformers.

    `ratio`: the share of each layer's heads that goes; one stays at least. `score`: l1 or l2 (norm of the head's rows
    and columns of all four matrices), or taylor (weight times gradient). Michel et al. 2019; Voita et al. 2019.
    """

    use: ClassVar[str] = "heads"
    positional: ClassVar[tuple[str, ...]] = ("ratio",)
    score: Literal["l1", "l2", "taylor"] = "l2"

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        keep = protected(module, self.protect)
        work = with_slim_attention(copy.deepcopy(module), keep)
        changes = cut_heads(work, Scores(work, self.score, evidence), self.ratio, keep, self.first_size)
        if not changes:
            raise RecipeError(
                "heads: no attention module that decoct knows (timm's Attention, transformers' encoders, "
                "nn.MultiheadAttention); use the scheme channels or layers"
            )
        if all(each.before == each.after == self.first_size(each.path, each.before) for each in changes) and not (
            self.waits and any(each.note != "protected" and each.before > 1 for each in changes)
        ):
            reasons = "; ".join(f"{each.path}: {each.note}" for each in changes[:5])
            raise RecipeError(f"heads: nothing can go at ratio {self.ratio:g} ({reasons})")
        return Compressed(work, tuple(changes))

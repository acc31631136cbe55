"""Positions weighted by the teacher's attention."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives.refine.base import Lesson, Refinement
from decoct.outputs import Batch
from decoct.training.clock import Clock


def attention_weights(feature: Tensor, *, temperature: float = 0.5) -> Tensor:
    """N · softmax over the N positions of mean_c |feature| / T, with 1 in place of the channels; mean 1 a sample.

    A map `[B, C, H, W]` gives `[B, 1, H, W]`, tokens `[B, N, D]` give `[B, N, 1]`.

    >>> attention_weights(torch.ones(1, 3, 2, 2)).flatten().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    x = feature.detach() if feature.dtype == torch.float64 else feature.detach().float()
    channel = 1 if x.ndim == 4 else -1
    energy = x.abs().mean(channel, keepdim=True)
    flat = energy.flatten(1)
    return (flat.shape[1] * torch.softmax(flat / temperature, -1)).view_as(energy)


class AttentionWeighting(Refinement):
    """Weighs each position of a feature term by the teacher's spatial attention there; the weights' mean is 1.

    For terms that average over the elements of one pair of layers (hint, hidden_mse, activation_boundary, vid).
    `temperature`: a smaller one marks fewer positions. Zhang and Ma 2021 (ICLR, attention-guided distillation),
    equations 1 to 3, add the student's attention; here the teacher alone marks.
    """

    use: ClassVar[str] = "attention"
    classes: ClassVar[bool] = False
    temperature: float = Field(default=0.5, gt=0, allow_inf_nan=False)

    def refine(self, lesson: Lesson, batch: Batch, clock: Clock) -> Lesson:
        """The weighted lesson; RecipeError where the term does not ask for exactly one map or set of tokens."""
        if len(lesson.layers) != 1:
            raise RecipeError(
                f"{lesson.label}: refine with attention: the term asks for {len(lesson.layers)} layers of the teacher; "
                "write one feature term for each pair of layers"
            )
        feature = lesson.teacher.features[lesson.layers[0]]
        if feature.ndim not in (3, 4):
            raise RecipeError(
                f"{lesson.label}: refine with attention: feature {lesson.layers[0]} {list(feature.shape)} has no "
                "positions; allowed: maps [B, C, H, W] and tokens [B, N, D]"
            )
        return lesson.weighted(attention_weights(feature, temperature=self.temperature))

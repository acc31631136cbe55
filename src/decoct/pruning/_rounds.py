"""Pruning in rounds, each with its share of what the first one found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from decoct.training.compression import Change, Scheme


class Rounds(BaseModel):
    """One of several rounds: `final` is the ratio after the last; `sizes` what each layer had before the first, by
    path, empty in the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    final: float = Field(gt=0, lt=1)
    sizes: dict[str, int] = {}


class InRounds(Scheme):
    """A scheme with a ratio that can be reached in rounds, at the sizes that it reaches at once.

    `rounds` is set by `recover: iterative` alone. The ratio of a round is that of all until then, of the first sizes:
    rounding to multiples does not add up.
    """

    ratio: float = Field(default=0.5, gt=0, lt=1)
    rounds: Rounds | None = Field(default=None, exclude_if=lambda value: value is None)

    def stage(self, number: int, count: int) -> Self:
        return self.replace(ratio=1 - (1 - self.ratio) ** (number / count), rounds=Rounds(final=self.ratio))

    def following(self, first: Sequence[Change]) -> Self:
        assert self.rounds is not None, "stage comes first"
        sizes = {each.path: each.before for each in first}
        return self.replace(rounds=Rounds(final=self.rounds.final, sizes=sizes))

    def first_size(self, path: str, now: int) -> int:
        """How many a layer had before the first round."""
        return now if self.rounds is None else self.rounds.sizes.get(path, now)

    @property
    def waits(self) -> bool:
        """Whether a round follows, so that it is no error if nothing can go yet."""
        return self.rounds is not None and self.ratio < self.rounds.final

    @property
    def begun(self) -> bool:
        """Whether a round came before."""
        return self.rounds is not None and bool(self.rounds.sizes)

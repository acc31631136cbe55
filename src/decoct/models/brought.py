"""Brought, what a pretrained network says of itself: its classes, its tokenizer, how its pixels are normalised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decoct.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

_UNNAMED = re.compile(r"label_(\d+)", re.IGNORECASE)
SHOWN = 8
"""So many classes an error names."""


@dataclass(frozen=True)
class Brought:
    """What the files of a pretrained network say of it.

    `source` names them; `labels`: the classes of its outputs in their order, empty where it has no trained head;
    `folder`: where its tokenizer lies, None where there is none; `longest`: the most ids that it reads; `mean`, `std`
    (of pixels in [0, 1]), `size` and `resample` (bilinear, bicubic, nearest) of its images;
    `columns` of a table by name, where it has names for them, and how many (`width`).
    """

    source: str
    labels: tuple[str, ...] = ()
    folder: Path | None = None
    longest: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    resample: str | None = None
    columns: tuple[str, ...] = ()
    width: int | None = None

    def order(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """For each of the classes `names` which output of the network it is; None where it lacks some of them.

        Names are compared without regard to case, spaces and `-` or `_`. `LABEL_3`, as transformers call a class
        without a name, is the class "3"; where the classes are called 0, 1, ... and there are as many, these number
        the outputs.

        >>> Brought("x", ("NEGATIVE", "POSITIVE")).order(("positive", "negative"))
        (1, 0)
        >>> Brought("x", ("LABEL_0", "LABEL_1")).order(("0", "1")), Brought("x", ("a", "b")).order(("a", "c"))
        ((0, 1), None)
        """
        if not self.labels:
            return None
        if list(names) == [str(number) for number in range(len(self.labels))]:
            return tuple(range(len(self.labels)))
        places: dict[str, int] = {}
        for number, label in enumerate(self.labels):
            plain = plain_name(label)
            if plain in places:
                return self._exactly(names)
            places[plain] = number
        if len({plain_name(name) for name in names}) < len(names):
            return self._exactly(names)
        found = [places.get(plain_name(name)) for name in names]
        return None if None in found else tuple(each for each in found if each is not None)

    def _exactly(self, names: Sequence[str]) -> tuple[int, ...] | None:
        return tuple(map(self.labels.index, names)) if set(names) <= set(self.labels) else None

    def refuse_untaught(self, names: Sequence[str]) -> None:
        """RecipeError where it cannot answer with the classes `names` as it is."""
        if not self.labels:
            raise RecipeError(
                f"{self.source} is a pretrained network without a trained head for this task, so it knows none of the "
                f"classes {_listed(names)}; train it first: {{use: train, name: teacher, inputs: {{model: NAME}}, "
                "side: teacher}, and let that step teach"
            )
        if self.order(names) is None:
            raise RecipeError(
                f"{self.source} answers with the classes {_listed(self.labels)}, the data have {_listed(names)}; "
                "where these are the same in other words, say `labels` at the model: the data's names in the order "
                f"of its outputs, as labels: [{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}]; where they "
                "are others, train it on them first: {use: train, name: teacher, inputs: {model: NAME}, side: teacher}"
            )


def plain_name(name: str) -> str:
    """A class's name as names are compared.

    >>> plain_name("Very-Good"), plain_name("LABEL_3")
    ('very good', '3')
    """
    unnamed = _UNNAMED.fullmatch(name)
    return unnamed[1] if unnamed else re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

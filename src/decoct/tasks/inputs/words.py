"""Words: sentences that come in words, which a tokenizer splits into pieces."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decoct.artifact import parse_json
from decoct.data.base import Dataset, Split
from decoct.data.remember import Remembered
from decoct.errors import DataError, RecipeError
from decoct.tasks.inputs.base import Trace
from decoct.tasks.inputs.texts import Encoded, Tokenized, end_to_end, padded, rows_of
from decoct.tasks.inputs.tokenizers import Tokenizer, encoded

NOWHERE = -1
"""The place of a piece that stands for no word."""


@dataclass(frozen=True)
class Pieces:
    """Sentences in pieces: ids, the word of each piece (-1: none), and how many words each sentence has."""

    ids: Encoded
    places: Encoded
    counts: np.ndarray


_ENCODED: Remembered[Pieces] = Remembered()


class Words(Tokenized):
    """Sentences of words, each split into pieces by itself; cut at `max_length` pieces.

    The Trace says of which word each piece is. A word beyond `max_length` has no piece, nor has one of which the
    tokenizer leaves nothing: there is no answer for it, and a warning says how many there are.
    """

    def asked(self, info: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": {**super().asked(info)["text"], "words": True}}

    def resolve_inputs(self, data: Dataset) -> dict[str, Any]:
        if not self.open:
            return {}
        found = self.resolved_tokenizers([" ".join(each) for each in words_of(data.splits["train"])])
        for tokenizer in found.values():
            if tokenizer is not None:
                refuse_glued_words(tokenizer)
        return found

    def read(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> tuple[dict[str, Tensor], Trace]:
        key = self.tokenizer.text, self.max_length
        found = _ENCODED.get(split, key, lambda: in_pieces(self.tokenizer, self.max_length, words_of(split)))
        places, _ = rows_of(found.places, indices, NOWHERE)
        trace = Trace(torch.from_numpy(places), torch.from_numpy(found.counts[indices]))
        return padded(found.ids, indices, self.tokenizer.padding_id()), trace


def in_pieces(tokenizer: Tokenizer, max_length: int, sentences: Sequence[Sequence[str]]) -> Pieces:
    """All sentences in pieces; a warning counts the words that have none."""
    encodings = encoded(tokenizer.engine(max_length), [list(each) for each in sentences], words=True)
    places = [[NOWHERE if word is None else word for word in each.word_ids] for each in encodings]
    counts = np.array([len(each) for each in sentences], np.int64)
    absent = counts - [len(set(each) - {NOWHERE}) for each in places]
    if absent.any():
        cut = int(absent[[bool(each.overflowing) for each in encodings]].sum())
        warnings.warn(
            f"{absent.sum():,} of {counts.sum():,} words have no piece and do not count: {cut:,} of sentences of more "
            f"than max_length={max_length} pieces (raise it), {absent.sum() - cut:,} of which the tokenizer leaves "
            "nothing",
            stacklevel=2,
        )
    return Pieces(end_to_end([each.ids for each in encodings]), end_to_end(places), counts)


def first_pieces(places: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Where the first piece of each word stands, int64 `[B, words]` (0 where there is none), and bool whether one is.

    `places` int64 `[B, L]`, the word of each piece, -1 for none; the pieces of a word stand together, and words below
    `words`.

    >>> at, there = first_pieces(torch.tensor([[-1, 0, 0, 2, -1]]), 3)
    >>> at.tolist(), there.tolist()
    ([[1, 0, 3]], [[True, False, True]])
    """
    before = F.pad(places, (1, 0), value=NOWHERE)[:, :-1]
    column = torch.where((places != NOWHERE) & (places != before), places, words)  # the last, which goes, for the rest
    at = torch.arange(places.shape[1], device=places.device).expand_as(places)
    index = places.new_zeros(len(places), words + 1).scatter(1, column, at)
    there = torch.zeros_like(index, dtype=torch.bool).scatter(1, column, True)
    return torch.where(there, index, 0)[:, :words], there[:, :words]


def words_of(split: Split) -> list[list[str]]:
    """The sentences of a split; RecipeError where it has none."""
    if "words" not in split.columns:
        raise RecipeError(f"the data have {', '.join(split.columns)} and no words; take data such as {{use: conll}}")
    sentences: list[list[str]] = split.columns["words"]
    return sentences


def refuse_glued_words(tokenizer: Tokenizer) -> None:
    """RecipeError for a byte-level tokenizer that would read each word as if no space stood before it."""
    plain = parse_json(tokenizer.text, "the tokenizer's JSON", dict[str, Any], error=DataError)
    splitter = plain.get("pre_tokenizer")
    for each in _parts(splitter):
        if each.get("type") == "ByteLevel" and not each.get("add_prefix_space", True):
            raise RecipeError(
                "tokenizer: it reads bytes and marks the space before a word, and here words come one by one; set "
                "add_prefix_space to true in the pre_tokenizer of its tokenizer.json"
            )


def _parts(splitter: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer and those that it is made of."""
    if isinstance(splitter, dict):
        yield splitter
        for each in splitter.get("pretokenizers") or ():
            yield from _parts(each)

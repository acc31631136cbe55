"""Texts: ids and attention mask, padded to the longest text of the batch."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.kept_arrays import keep_arrays, kept_arrays
from decoct.data.mapped import LEAST, Growing, room
from decoct.data.remember import Remembered
from decoct.data.stored_texts import StoredTexts
from decoct.errors import RecipeError
from decoct.models.calls import Postprocessing, TextProgram
from decoct.models.interface import InputKind, Port, input_ports
from decoct.spec import Choice
from decoct.tasks.inputs.base import STUDENT, Inputs, as_arrays, made_up, refuse_but_ids, sizes_of
from decoct.tasks.inputs.given_inputs import (
    IDS,
    STANDARD,
    GivenInputs,
    given_axes,
    given_example,
    given_inputs,
    given_ports,
    refuse_other_names,
)
from decoct.tasks.inputs.tokenizers import Tokenizer, WordPiece, encoded

AnyTokenizer = Annotated[
    Tokenizer, Choice("decoct.tasks.inputs.tokenizers", shorthand="decoct.tasks.inputs.tokenizers:as_tokenizer")
]


@dataclass(frozen=True)
class Encoded:
    """Ids of many texts; those of text i are `ids[starts[i]:ends[i]]`."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


ROWS = 1024
"""Texts encoded at a time: of many texts no more than a batch asks for."""


class Encodings:
    """Texts that are encoded when a batch asks for them, in blocks of neighbours; then kept, many of them on disk.

    All ids of texts that the index holds are kept beside them, so that no later run encodes them again.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, texts: Sequence[str]) -> None:
        self._tokenizer, self._max_length, self._texts = tokenizer, max_length, texts
        self._name = hashlib.sha256(json.dumps([tokenizer.text, max_length]).encode()).hexdigest()[:32]
        kept = None if self._home is None else kept_arrays(self._home / self._name, FIELDS, len(texts))
        self._ids, self._lock = Growing(np.int32), threading.Lock()
        self._left = set() if kept else set(range(-(-len(texts) // ROWS)))
        self._kept = Encoded(*kept) if kept else None
        self._starts, self._ends = (room(0 if kept else len(texts), np.int64) for _ in range(2))

    def of(self, indices: np.ndarray) -> Encoded:
        """Encoded texts, those at `indices` among them."""
        if self._kept is not None:
            return self._kept
        with self._lock:
            return self._encoded(indices)

    def _encoded(self, indices: np.ndarray) -> Encoded:
        for number in sorted(self._left & set(np.unique(indices // ROWS).tolist())):
            part = slice(number * ROWS, min((number + 1) * ROWS, len(self._texts)))
            found = encode(self._tokenizer, self._max_length, list(self._texts[part]))
            start = self._ids.add(found.ids)
            self._starts[part], self._ends[part] = found.starts + start, found.ends + start
            self._left.remove(number)
        whole = Encoded(self._ids.values, self._starts, self._ends)
        if not self._left:
            self._kept = whole
            if self._home is not None and whole.ids.nbytes > LEAST:
                keep_arrays(self._home / self._name, dict(zip(FIELDS, (whole.ids, whole.starts, whole.ends))))
        return whole

    @property
    def _home(self) -> Path | None:
        return self._texts.home if isinstance(self._texts, StoredTexts) else None


FIELDS = ("ids", "starts", "ends")

_ENCODED: Remembered[Encodings] = Remembered()


class Tokenized(Inputs):
    """Inputs that start at ids: the fields and habits that all of them share.

    `tokenizer` and `max_length` (ids, special ones included) of the student's side; `teacher_tokenizer` and
    `teacher_max_length` where the teacher's differ. tokenizer.json ships beside an exported graph, which starts at
    ids. `given_inputs`, `teacher_given_inputs`: what loaders from Python gave models in training, where it is not ids
    and attention mask (token types, say); taken from their first batch, and what the exported file takes.
    """

    kind: ClassVar[InputKind] = "text"
    tokenizer: AnyTokenizer = WordPiece()
    max_length: int = Field(default=128, ge=1, le=1 << 20)
    teacher_tokenizer: AnyTokenizer | None = None
    teacher_max_length: int | None = Field(default=None, ge=1, le=1 << 20)
    given_inputs: GivenInputs = Field(default_factory=dict, exclude_if=lambda value: not value)
    teacher_given_inputs: GivenInputs = Field(default_factory=dict, exclude_if=lambda value: not value)

    def of(self, reader: str) -> Self:
        own = self.replace(teacher_tokenizer=None, teacher_max_length=None, teacher_given_inputs={})
        if reader == STUDENT:
            return own
        return own.replace(
            tokenizer=self.teacher_tokenizer or self.tokenizer,
            max_length=self.teacher_max_length or self.max_length,
            given_inputs=self.teacher_given_inputs,
        )

    def resolved_tokenizers(self, texts: list[str]) -> dict[str, Any]:
        """Both tokenizers, trained on `texts` where they are to be trained."""
        theirs = self.teacher_tokenizer
        return {
            "tokenizer": self.tokenizer.resolve(texts),
            "teacher_tokenizer": None if theirs is None else theirs.resolve(texts),
        }

    @property
    def open(self) -> bool:
        """Whether a tokenizer is not known yet."""
        theirs = self.teacher_tokenizer
        return not self.raw and not (self.tokenizer.text and (theirs is None or theirs.text))

    def ports(self) -> dict[str, Port]:
        if self.given_inputs:
            return given_ports(self.given_inputs, self.max_length)
        return input_ports("text", (self.max_length,))

    @property
    def vocabulary(self) -> int | None:
        return None if self.raw else self.tokenizer.vocabulary_size()

    @property
    def padding(self) -> int | None:
        return None if self.raw else self.tokenizer.padding_id()

    def preprocessing(self) -> nn.Module:
        return nn.Identity()

    def prepared(self, inputs: Any) -> Any:
        return inputs

    def program(self, model: nn.Module, postprocessing: Postprocessing | None) -> nn.Module:
        positional = any(not each.keyword for each in self.given_inputs.values())
        return TextProgram(model, postprocessing, positional=positional)

    def example(self, batch: int = 2) -> dict[str, Tensor]:
        length = min(self.max_length, 16)
        ids = made_up((batch, length), 2 if self.raw else self.tokenizer.vocabulary_size())
        mask = torch.ones_like(ids)
        if batch > 1 and length > 1:
            mask[-1, length // 2 :] = 0
            ids[-1, length // 2 :] = 0 if self.raw else self.tokenizer.padding_id()
        standard = {"input_ids": ids, "attention_mask": mask}
        return given_example(self.given_inputs, standard) if self.given_inputs else standard

    def asked(self, info: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": {"inputs": list(self.given_inputs or STANDARD)}}

    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return given_axes(self.given_inputs or STANDARD)

    def feed(self, inputs: Any) -> dict[str, np.ndarray]:
        expected = self.given_inputs or STANDARD
        refuse_other_names(expected, inputs)
        found = as_arrays(inputs, IDS)
        return {name: found[name] for name in expected}

    def assets(self) -> dict[str, str]:
        return {} if self.raw else {"tokenizer.json": self.tokenizer.shipped(self.max_length)}

    def refuse_other(self, reader: str, value: Any) -> None:
        refuse_but_ids(reader, value)

    def shapes_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        longest = {name: sizes_of(inputs[name])[0] for name in ("student", "teacher")}
        return {
            "max_length": max(self.max_length, longest["student"]),
            "teacher_max_length": max(self.teacher_max_length or self.max_length, longest["teacher"]),
            "given_inputs": given_inputs(inputs["student"]),
            "teacher_given_inputs": given_inputs(inputs["teacher"]),
        }


class Texts(Tokenized):
    """Whole texts, each cut at `max_length` ids."""

    use: ClassVar[str] = "texts"

    def resolve_inputs(self, data: Dataset) -> dict[str, Any]:
        return self.resolved_tokenizers(texts_of(data.splits["train"])) if self.open else {}

    def read(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> tuple[dict[str, Tensor], None]:
        key = self.tokenizer.text, self.max_length
        texts = _ENCODED.get(split, key, lambda: Encodings(self.tokenizer, self.max_length, texts_of(split)))
        return padded(texts.of(indices), indices, self.tokenizer.padding_id()), None


def encode(tokenizer: Tokenizer, max_length: int, texts: Sequence[str]) -> Encoded:
    """The ids of all texts."""
    rows = [each.ids for each in encoded(tokenizer.engine(max_length), texts)]
    return end_to_end(rows)


def end_to_end(rows: list[list[int]]) -> Encoded:
    """Rows of numbers, one after the other."""
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=starts[1:])
    ids = np.fromiter((i for row in rows for i in row), np.int64, count=int(starts[-1]))
    return Encoded(ids, starts[:-1], starts[1:])


def padded(encoded: Encoded, indices: np.ndarray, padding: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` int64 `[B, L]`, L the longest of these texts (at least 1)."""
    ids, real = rows_of(encoded, indices, padding)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}


def rows_of(encoded: Encoded, indices: np.ndarray, filling: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 `[B, L]` filled up to the longest (at least 1), and bool `[B, L]` where they are real."""
    starts, ends = encoded.starts[indices], encoded.ends[indices]
    lengths = ends - starts
    real = np.arange(max(1, int(lengths.max(initial=0)))) < lengths[:, None]
    rows = np.full(real.shape, filling, np.int64)
    rows[real] = np.concatenate([encoded.ids[start:end] for start, end in zip(starts, ends)])
    return rows, real


def texts_of(split: Split) -> list[Any]:
    """The texts of a split; RecipeError where it has none."""
    if "text" not in split.columns:
        raise RecipeError(f"the data have {', '.join(split.columns)} and no texts")
    texts: list[Any] = split.columns["text"]
    return texts

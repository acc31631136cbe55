"""Text classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.errors import RecipeError
from decoct.models.base import Interface
from decoct.outputs import Batch
from decoct.spec import Choice
from decoct.tasks.base import Side
from decoct.tasks.calls import Kind, TextProgram
from decoct.tasks.classification import Classification, class_target
from decoct.tasks.remember import Remembered
from decoct.tasks.supervised import batch_of, feed_arrays, shape_of
from decoct.tasks.tokenizers import Tokenizer, WordPiece

AnyTokenizer = Annotated[Tokenizer, Choice("decoct.tasks.tokenizers", shorthand="decoct.tasks.tokenizers:as_tokenizer")]


@dataclass(frozen=True)
class Encoded:
    """Ids of many texts end to end; text i is `ids[starts[i]:starts[i + 1]]`."""

    ids: np.ndarray
    starts: np.ndarray


_ENCODED: Remembered[Encoded] = Remembered()


class TextClassification(Classification):
    """One class for each text: ids and attention mask in, padded to the longest text of the batch.

    `tokenizer` and `max_length` (ids, special ones included) of the student's side; `teacher_tokenizer` and
    `teacher_max_length` where the teacher's differ. tokenizer.json ships beside an exported graph, which starts at
    ids. Accuracy is the main metric unless `metric_name` says otherwise.
    """

    use: ClassVar[str] = "text_classification"
    tokenizer: AnyTokenizer = WordPiece()
    max_length: int = Field(default=128, ge=1)
    teacher_tokenizer: AnyTokenizer | None = None
    teacher_max_length: int | None = Field(default=None, ge=1)

    @property
    def kind(self) -> Kind:
        return "text"

    def resolve(self, data: Dataset) -> Self:
        if self.raw:
            return self
        theirs = self.teacher_tokenizer
        if self.classes and self.tokenizer.text and (theirs is None or theirs.text):
            return self
        texts = _texts(data.splits["train"])
        return self.replace(
            classes=self.classes or data.classes,
            tokenizer=self.tokenizer.resolve(texts),
            teacher_tokenizer=None if theirs is None else theirs.resolve(texts),
        )

    def interface(self, side: Side) -> Interface:
        tokenizer, max_length = self._side(side)
        known = not self.raw
        return Interface(
            kind="text",
            shape=(max_length,),
            outputs=self._class_count(),
            vocabulary=tokenizer.vocabulary_size() if known else None,
            padding=tokenizer.padding_id() if known else None,
        )

    def collate(self, split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
        student = self._inputs(split, indices, "student")
        same = self.teacher_tokenizer is None and self.teacher_max_length in (None, self.max_length)
        teacher = student if same else self._inputs(split, indices, "teacher")
        inputs = {"student": student, "teacher": teacher}
        return batch_of(split, indices, inputs, class_target(split, indices), view)

    def shaped_by(self, batch: Batch, outputs: int) -> Self:
        longest = {side: shape_of(batch.side(side))[0] for side in ("student", "teacher")}
        return self.replace(
            max_length=max(self.max_length, longest["student"]),
            classes=self._class_names(outputs),
            teacher_max_length=max(self.teacher_max_length or self.max_length, longest["teacher"]),
        )

    def preprocessing(self, side: Side) -> nn.Module:
        return nn.Identity()

    def program(self, model: nn.Module, side: Side) -> nn.Module:
        return TextProgram(model)

    def example(self, side: Side, batch: int = 2) -> dict[str, Tensor]:
        tokenizer, max_length = self._side(side)
        length = min(max_length, 16)
        size = 2 if self.raw else tokenizer.vocabulary_size()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, size, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        if batch > 1 and length > 1:
            mask[-1, length // 2 :] = 0
            ids[-1, length // 2 :] = 0 if self.raw else tokenizer.padding_id()
        return {"input_ids": ids, "attention_mask": mask}

    def feed(self, batch: Batch, side: Side) -> dict[str, np.ndarray]:
        return feed_arrays("text", batch.side(side))

    def axes(self, side: Side) -> Mapping[str, Mapping[int, str]]:
        return {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}

    def assets(self, side: Side) -> dict[str, str]:
        if self.raw:
            return {}
        tokenizer, max_length = self._side(side)
        return {"tokenizer.json": tokenizer.shipped(max_length)}

    def _side(self, side: Side) -> tuple[Tokenizer, int]:
        if side == "teacher":
            return self.teacher_tokenizer or self.tokenizer, self.teacher_max_length or self.max_length
        return self.tokenizer, self.max_length

    def _inputs(self, split: Split, indices: np.ndarray, side: Side) -> dict[str, Tensor]:
        tokenizer, max_length = self._side(side)
        key = tokenizer.text, max_length
        encoded = _ENCODED.get(split, key, lambda: encode(tokenizer, max_length, _texts(split)))
        return padded(encoded, indices, tokenizer.padding_id())


def encode(tokenizer: Tokenizer, max_length: int, texts: list[str]) -> Encoded:
    """The ids of all texts."""
    rows = [each.ids for each in tokenizer.engine(max_length).encode_batch(texts)]
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=starts[1:])
    ids = np.fromiter((i for row in rows for i in row), np.int64, count=int(starts[-1]))
    return Encoded(ids, starts)


def padded(encoded: Encoded, indices: np.ndarray, padding: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` int64 `[B, L]`, L the longest of these texts (at least 1)."""
    starts, ends = encoded.starts[indices], encoded.starts[indices + 1]
    lengths = ends - starts
    real = np.arange(max(1, int(lengths.max(initial=0)))) < lengths[:, None]
    ids = np.full(real.shape, padding, np.int64)
    ids[real] = np.concatenate([encoded.ids[start:end] for start, end in zip(starts, ends)])
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}


def _texts(split: Split) -> list[Any]:
    if "text" not in split.columns:
        raise RecipeError(f"text_classification: the data have {', '.join(split.columns)} and no texts")
    texts: list[Any] = split.columns["text"]
    return texts

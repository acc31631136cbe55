"""Streams: documents one after the other as tokens, cut into windows, as causal language models read them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from decoct.data.base import Dataset, Split
from decoct.data.hashing import content_keys
from decoct.data.remember import Remembered
from decoct.errors import DataError, RecipeError
from decoct.tasks.inputs.texts import AnyTokenizer, Tokenized, encode, texts_of
from decoct.tasks.inputs.tokenizers import BytePair

IGNORED = -100
IDS, NEXT = "ids", "next"
"""Columns of windows: int64 `[N, L]`, and the token that follows each, -100 where none does."""

_WINDOWS: Remembered[Split] = Remembered()


class Streams(Tokenized):
    """All documents of a split in their order, each closed by the end token, cut into windows of `max_length` ids.

    A window is a row: it reads across the ends of documents, and its key is that of its ids. The last is filled up.
    Student and teachers read the same windows, so that they need one tokenizer.
    """

    use: ClassVar[str] = "streams"
    tokenizer: AnyTokenizer = BytePair()

    def resolve_inputs(self, data: Dataset) -> dict[str, Any]:
        if self.teacher_tokenizer is not None or self.teacher_max_length is not None:
            raise RecipeError(
                "teacher_tokenizer, teacher_max_length: windows of one tokenizer have no counterpart in another's; "
                "leave them out"
            )
        return self.resolved_tokenizers(texts_of(data.splits["train"])) if self.open else {}

    def rows(self, split: Split) -> Split:
        if IDS in split.columns:
            return split
        key = self.tokenizer.text, self.max_length
        return _WINDOWS.get(split, key, lambda: self._windows(split))

    def read(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> tuple[dict[str, Tensor], None]:
        rows = self.rows(split)
        ids = torch.from_numpy(rows.columns[IDS][indices])
        real = torch.from_numpy((rows.columns[NEXT][indices] != IGNORED).astype(np.int64))
        real[:, 0] = 1
        return {"input_ids": ids, "attention_mask": real}, None

    def _windows(self, split: Split) -> Split:
        texts = texts_of(split)
        encoded = encode(self.tokenizer, max(map(len, texts)) + 8, texts)
        ids, length = encoded.ids, self.max_length
        if len(ids) < 2:
            raise DataError("the split holds fewer than two tokens; there is nothing to predict")
        count = -(-(len(ids) - 1) // length)
        stream = np.full(count * length + 1, self.tokenizer.padding_id(), np.int64)
        stream[: len(ids)] = ids
        following = np.full(count * length, IGNORED, np.int64)
        following[: len(ids) - 1] = ids[1:]
        windows = stream[:-1].reshape(count, length)
        real = following.reshape(count, length)
        keys = content_keys((row[: int((mask != IGNORED).sum())].data for row, mask in zip(windows, real)), b"window")
        return Split({IDS: windows, NEXT: real}, keys)

"""Texts: batches against the tokenizer that ships."""

import numpy as np

from decoct.data.base import Dataset
from decoct.tasks.inputs.tokenizers import WordPiece
from decoct.tasks.text_classification import TextClassification


def test_text_batches_are_what_the_tokenizer_says(texts: Dataset) -> None:
    from tokenizers import Tokenizer

    task = TextClassification(tokenizer=WordPiece(size=40), max_length=8, teacher_max_length=5).resolve(texts)
    split = texts.splits["test"]
    indices = np.array([3, 1, 7, 7, 0])
    batch = task.collate(split, indices)
    for side in ("student", "teacher"):
        shipped = Tokenizer.from_str(task.reading(side).assets()["tokenizer.json"])
        expected = shipped.encode_batch([split.columns["text"][i] for i in indices])
        assert batch.side(side)["input_ids"].tolist() == [each.ids for each in expected]
        assert batch.side(side)["attention_mask"].tolist() == [each.attention_mask for each in expected]
        assert batch.side(side)["input_ids"].shape[1] == max(sum(each.attention_mask) for each in expected)
    assert task.reading("teacher").interface.shape == (5,)


def test_sides_with_one_tokenizer_share_their_inputs(texts: Dataset) -> None:
    task = TextClassification(tokenizer=WordPiece(size=40)).resolve(texts)
    batch = task.collate(texts.splits["test"], np.arange(3))
    assert batch.side("student") is batch.side("teacher")

"""Classification of words in sentences: named entities and their like."""

from __future__ import annotations

from typing import ClassVar

from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.tags import Tags
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.words import Words


class TokenClassification(Words, Tags, Joined):
    """One tag for each word of a sentence: words are split into pieces, and a word's answer is that of its first piece.

    `tokenizer` and `max_length` (pieces, special ones included) of the student's side; `teacher_tokenizer` and
    `teacher_max_length` where the teacher's differ: both sides meet at the words. An exported graph gives logits of
    pieces, with tokenizer.json beside it. F1 of entities is the main metric unless `metric_name` says otherwise;
    `entities`: how they are read from tags, as seqeval's modes.
    """

    use: ClassVar[str] = "token_classification"
    reads: ClassVar[type[Inputs]] = Words
    answers: ClassVar[type[Answer]] = Tags

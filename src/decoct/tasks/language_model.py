"""Causal language models."""

from __future__ import annotations

from typing import ClassVar

from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.next_tokens import NextTokens
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.streams import Streams


class LanguageModel(Streams, NextTokens, Joined):
    """The token that follows, at each position of a text: a causal language model.

    Documents are read as one stream of tokens, each closed by the end token, in windows of `max_length`; `tokenizer` is
    by default a byte-pair one that is trained on the data. Logits of all positions are never written out in training
    unless a term wants them: models with a head of their own answer with hidden states and that head. Perplexity is the
    main metric.
    """

    use: ClassVar[str] = "language_model"
    reads: ClassVar[type[Inputs]] = Streams
    answers: ClassVar[type[Answer]] = NextTokens

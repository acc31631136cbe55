"""Regression: numbers predicted from rows of a table."""

from __future__ import annotations

from typing import ClassVar

from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.numbers import Numbers
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.tables import Tables


class Regression(Tables, Numbers, Joined):
    """Numbers predicted from rows of a table, standardised inside: logits and targets are (value − mean) / std.

    Logits and target float32 `[B, D]`, NaN where the target must not be used. `target_mean` and `target_std`, and the
    `columns`, come from the training split. The loss is the squared error of standardised values, mean over D and over
    labelled samples. The exported file gives `values` in their own units, and scores are in them: rmse, mae, mse, r2.
    """

    use: ClassVar[str] = "regression"
    reads: ClassVar[type[Inputs]] = Tables
    answers: ClassVar[type[Answer]] = Numbers

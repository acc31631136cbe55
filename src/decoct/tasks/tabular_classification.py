"""Classification of rows of a table."""

from __future__ import annotations

from typing import ClassVar

from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.classes import RowClasses
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.tables import Tables


class TabularClassification(Tables, RowClasses, Joined):
    """One class for each row of a table; imputation, standardisation and one-hot coding are inside the exported graph.

    `encoding` of categorical columns: `one_hot`, or `ordinal` (their numbers, standardised). `columns` hold the
    statistics of the training split. `shape` of a row is needed with `raw` alone. The main metric is the area under
    the ROC curve for two classes, accuracy for more, unless `metric_name` says otherwise.
    """

    use: ClassVar[str] = "tabular_classification"
    reads: ClassVar[type[Inputs]] = Tables
    answers: ClassVar[type[Answer]] = RowClasses

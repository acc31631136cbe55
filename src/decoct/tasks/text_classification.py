"""Text classification."""

from __future__ import annotations

from typing import ClassVar

from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.classes import Classes
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.texts import Texts


class TextClassification(Texts, Classes, Joined):
    """One class for each text: ids and attention mask in, padded to the longest text of the batch.

    `tokenizer` and `max_length` (ids, special ones included) of the student's side; `teacher_tokenizer` and
    `teacher_max_length` where the teacher's differ. tokenizer.json ships beside an exported graph, which starts at
    ids. Accuracy is the main metric unless `metric_name` says otherwise.
    """

    use: ClassVar[str] = "text_classification"
    reads: ClassVar[type[Inputs]] = Texts
    answers: ClassVar[type[Answer]] = Classes

"""What does not go together is refused before anything is trained."""

from typing import Any

import pytest

from decoct.errors import RecipeError
from decoct.steps.learning.teachers import refuse_other_heads
from decoct.tasks.answers.classes import OneClass
from decoct.tasks.answers.heads import Heads
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.images import Images
from decoct.tasks.multi_task import MultiTask


def heads(**classes: tuple[str, ...]) -> Any:
    return {name: OneClass(classes=each) for name, each in classes.items()}


def test_heads_that_name_classes_in_another_order_are_refused() -> None:
    own, same = Heads(heads=heads(pet=("cat", "dog"))), Heads(heads=heads(pet=("cat", "dog"), size=("s", "l")))
    refuse_other_heads(own, same, "teacher")
    other = Heads(heads=heads(pet=("dog", "cat")))
    with pytest.raises(RecipeError, match="its head 'pet' knows the classes dog, cat, the task has cat, dog"):
        refuse_other_heads(own, other, "teacher")


def test_a_teacher_without_heads_teaches_no_heads() -> None:
    task = MultiTask(reads=Images(), heads=heads(pet=("cat", "dog")))
    assert task.as_taught_by(task) is task
    with pytest.raises(RecipeError, match="made for task 'image_classification', which has no heads"):
        task.as_taught_by(ImageClassification(classes=("cat", "dog")))

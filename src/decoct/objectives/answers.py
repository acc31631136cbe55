"""Which terms suit which answers: distributions over classes, or predicted numbers."""

from __future__ import annotations

from decoct.errors import RecipeError
from decoct.objectives.base import Objective, Sum
from decoct.objectives.kd import KD
from decoct.objectives.regression_kd import RegressionKD
from decoct.tasks.answers.base import Answer


def problem_with(term: Objective, answer: Answer) -> str | None:
    """What is wrong with a term for a task that answers so, in a sentence; None where it suits.

    >>> from decoct.tasks.regression import Regression
    >>> problem_with(KD(), Regression().answer)
    'kd compares distributions over classes, and the task predicts numbers; use regression_kd or logit_mse'
    >>> problem_with(RegressionKD(), Regression().answer) is None
    True
    """
    suits = term.suits()
    readers = [each.use for each in term.refine if each.classes]
    if answer.parts and term.head is not None:
        if term.head not in answer.parts:
            return None  # a head that the model adds, or one that does not exist, which is said elsewhere
        answer = answer.head(term.head)
    if answer.parts:
        if suits == "any" and not readers:
            return None
        return f"{term.label} compares one answer, and the task has several heads; give it a `head`: " + ", ".join(
            answer.parts
        )
    if answer.distribution:
        if suits != "numbers":
            return None
        return f"{term.label} is for predicted numbers, and the task answers with classes; use kd, or another of those"
    what = "predicts numbers" if answer.numbers else "has no classes to be sure of"
    instead = "regression_kd or logit_mse" if answer.numbers else "task_loss, or terms over features or values"
    if suits == "classes":
        reads = "compares distributions over classes" if term.taught else "reads class ids"
        if not term.taught:
            instead = "task_loss"
        return f"{term.label} {reads}, and the task {what}; use {instead}"
    if suits == "numbers" and not answer.numbers:
        return f"{term.label} is for predicted numbers, and the task answers with none; use {instead}"
    if readers:
        return (
            f"{term.label}: refine with {readers[0]} reads probabilities of classes, and the task {what}; leave it out"
        )
    return None


def refuse_other_answers(objective: Objective, answer: Answer) -> None:
    """RecipeError where a term of an objective does not suit a task that answers so."""
    found = [problem_with(each, answer) for each in objective.flat()]
    wrong = [each for each in found if each is not None]
    if wrong:
        raise RecipeError("; ".join(wrong))


def for_numbers(objective: Objective) -> Objective:
    """The same objective for predicted numbers: `regression_kd` in the place of every `kd`, under the same weight.

    >>> from decoct.objectives.task_loss import TaskLoss
    >>> for_numbers(0.9 * KD(temperature=4.0) + 0.1 * TaskLoss())
    Sum(terms=(RegressionKD(weight=0.9), TaskLoss(weight=0.1)))
    """
    if isinstance(objective, Sum):
        return objective.replace(terms=tuple(map(for_numbers, objective.terms)))
    if not isinstance(objective, KD):
        return objective
    kept = {name: getattr(objective, name) for name in Objective.model_fields if name in objective.model_fields_set}
    return RegressionKD(**kept)

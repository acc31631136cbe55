"""What goes together when views are mixed, teachers averaged and weights follow validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact
from decoct.errors import RecipeError
from decoct.memory import require_memory
from decoct.objectives.base import Objective
from decoct.objectives.criterion import Criterion
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.batches import has_split
from decoct.tasks.inputs.base import READERS, STUDENT
from decoct.training.stopping import Stopping

if TYPE_CHECKING:
    from decoct.steps.learning.settings import Learning

Scores = Callable[[], dict[str, float]]


NUMBER_BYTES, AT_ONCE = 4, 3
"""Of one number, and how often a batch of inputs is in memory: as read, prepared, and what the first layer makes."""


def refuse_large_batches(step: Learning, context: Context) -> None:
    """ResourceError where the inputs of one batch alone would not fit into memory."""
    if context.task.inputs(STUDENT).raw or "train" not in context.data.splits:
        return
    samples = min(step.batch_size, len(context.data.splits["train"]))
    for reader in READERS:
        for port in context.task.inputs(reader).ports().values():
            shape = [each or 1 for each in port.shape]
            require_memory(
                AT_ONCE * NUMBER_BYTES * samples * math.prod(shape),
                f"{step.name}: a batch of {samples} inputs of {'x'.join(map(str, shape))} for the {reader}",
                "lower batch_size (and raise accumulate), or the size of the inputs (task.size, data.size)",
            )


def refuse_what_cannot_mix(step: Learning, objective: Objective, inputs: Inputs, context: Context) -> None:
    """RecipeError for mixed views under an objective that reads class ids, or before a file that takes whole pixels;
    for several views of a task that augments nothing."""
    if step.teacher_views > 1 and not context.task.answer.combines:
        raise RecipeError(
            f"teacher_views is {step.teacher_views}, and answers of task {context.task.use!r} cannot be averaged; "
            "leave teacher_views out"
        )
    if step.teacher_views > 1 and context.task.inputs(STUDENT).variation is None:
        raise RecipeError(
            f"teacher_views is {step.teacher_views}, and task {context.task.use!r} augments nothing, so that all views "
            "are the same; give task.augment, or leave teacher_views out"
        )
    if step.teacher_views > 1 and not step.augment:
        raise RecipeError(f"teacher_views is {step.teacher_views} and augment false; set augment to true")
    if step.mix is None:
        return
    for term in objective.flat():
        if term.supervised and not term.mixed:
            raise RecipeError(
                f"mix is {step.mix.use}, and {term.label} reads one class a sample; leave mix out, or take terms that "
                "read mixed targets: task_loss, cross_entropy, balanced_cross_entropy, or none, as kd"
            )
    files = [role for role, value in inputs.items() if isinstance(value, Artifact) and value.kind == "exported"]
    if step.mix.between and files:
        raise RecipeError(
            f"mix is {step.mix.use}, whose pixels are no whole numbers, and {', '.join(files)} is an exported file, "
            "which takes them; use cutmix, or the step that the file was exported from"
        )


def stopping(step: Learning, context: Context) -> Stopping | None:
    """What ends the step's training early; RecipeError where no validation split says when."""
    if step.stop is None:
        return None
    if not has_split(context, "validation"):
        raise RecipeError("stop needs a validation split, and the data have none; give data.validation, such as 0.1")
    name, better = context.task.metric
    wanted = step.stop.metric or name
    return Stopping(step.stop, wanted, context.task.answer.metrics.get(wanted, better))


def observed(validate: Scores | None, parts: Iterable[Any]) -> Scores | None:
    """`validate`, with every criterion among `parts` hearing the scores; RecipeError where one needs them and there is
    no validation."""
    watching = [each for each in parts if isinstance(each, Criterion) and each.watches]
    if not watching:
        return validate
    if validate is None:
        raise RecipeError(
            "balance is validation, and the data have no validation split; give data.validation, such as 0.1"
        )
    score = validate

    def scored() -> dict[str, float]:
        found = score()
        for criterion in watching:
            criterion.observe(found)
        return found

    return scored

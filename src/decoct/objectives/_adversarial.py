"""What the terms over attacked inputs share."""

from __future__ import annotations

from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._logits import logits_of
from decoct.outputs import Outputs

HEAD = "adversarial"


def adversarial_logits(student: Outputs, label: str) -> Tensor:
    """What the student says of attacked inputs; RecipeError where nothing attacks it."""
    if HEAD not in student.heads:
        raise RecipeError(
            f"{label}: it compares what the student says of attacked inputs; use it in the step adversarial_distill"
        )
    return logits_of("student", student.heads[HEAD], label)

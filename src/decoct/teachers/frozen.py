"""Frozen: a torch module that answers as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from decoct.errors import RecipeError
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.teachers.base import Teacher
from decoct.teachers.contract import frozen

if TYPE_CHECKING:
    from decoct.teachers.task import Task


class Frozen(Teacher):
    """A module under the teacher contract.

    `open` takes a module that is already built. Each prediction runs in eval mode under no_grad, so its tensors can
    enter a loss that saves them; features are captured for that one call, and no hook stays.
    """

    use: ClassVar[str] = "frozen"

    def open(
        self,
        subject: Any,
        task: Task,
        needs: Needs,
        *,
        side: str,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A predictor while the body runs; RecipeError for a subject that is no module."""
        if not isinstance(subject, nn.Module):
            raise RecipeError(
                f"a frozen teacher is a torch module, not {type(subject).__name__}; load the module first"
            )
        if needs.gradient:
            raise RecipeError("a frozen teacher answers without gradients, and a term asks for those of its inputs")
        return _predictor(subject, task, needs, side, device, autocast)


@contextmanager
def _predictor(
    subject: nn.Module,
    task: Task,
    needs: Needs,
    side: str,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[Any]] | None,
) -> Iterator[Predictor]:
    with frozen(subject, device) as module:
        parts = list(module.modules())

        def predict(batch: Batch) -> Outputs:
            if True in [each.training for each in parts]:
                module.eval()
            with torch.no_grad():
                if autocast is None:
                    return task.forward(module, batch, needs, side)
                with autocast():
                    return task.forward(module, batch, needs, side)

        yield predict

"""Frozen: a torch module that answers as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from decoct.errors import RecipeError
from decoct.models.base import Network
from decoct.models.given import plain_network
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.teachers.base import Reading, Teacher
from decoct.teachers.contract import frozen


class Frozen(Teacher):
    """A module under the teacher contract.

    `open` takes a module that is already built. Each prediction runs in eval mode under no_grad, so its tensors can
    enter a loss that saves them; features are captured for that one call, and no hook stays.
    """

    use: ClassVar[str] = "frozen"

    def open(
        self,
        subject: Any,
        reading: Reading,
        needs: Needs,
        *,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A predictor while the body runs; RecipeError for a subject that is neither a module nor a Network."""
        if isinstance(subject, nn.Module):
            subject = plain_network(subject, reading.kind, per_pixel=reading.per_pixel)
        if not isinstance(subject, Network):
            raise RecipeError(
                f"a frozen teacher is a torch module, not {type(subject).__name__}; load the module first"
            )
        if needs.gradient:
            raise RecipeError("a frozen teacher answers without gradients, and a term asks for those of its inputs")
        return _predictor(subject, reading, needs, device, autocast)


@contextmanager
def _predictor(
    subject: Network,
    reading: Reading,
    needs: Needs,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[Any]] | None,
) -> Iterator[Predictor]:
    with frozen(subject.module, device) as module:
        parts = list(module.modules())
        network = replace(subject, module=module)

        def predict(batch: Batch) -> Outputs:
            if True in [each.training for each in parts]:
                module.eval()
            with torch.no_grad():
                if autocast is None:
                    return reading.forward(network, batch, needs)
                with autocast():
                    return reading.forward(network, batch, needs)

        yield predict

"""Budget: how long to train."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from decoct.errors import RecipeError
from decoct.spec import Spec


class Budget(Spec):
    """How long to train, in exactly one unit. A fraction of an epoch is rounded to steps, at least one.

    `steps`: steps of the optimizer. `epochs`: passes over the training samples, fractions too. `samples`: how many are
    drawn in all. `seconds`: how long training takes.

    Epochs are of sources that know how many batches they have.

    >>> Budget(epochs=2).steps_for(batches=50)
    100
    """

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, ge=0)
    samples: int | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_unit(cls, data: Any) -> Any:
        if isinstance(data, dict) and set(data) <= set(cls.model_fields):
            given = [name for name in ("steps", "epochs", "samples", "seconds") if data.get(name) is not None]
            if len(given) != 1:
                raise ValueError(f"give one of steps, epochs, samples, seconds (given: {', '.join(given) or 'none'})")
        return data

    def steps_for(self, batches: int | None, *, accumulate: int = 1, batch_size: int = 1) -> int | None:
        """Optimizer steps of this budget where an epoch has `batches` batches; None when it is in seconds.

        RecipeError for epochs of which nobody knows the batches (None).
        """
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            if batches is None:
                raise RecipeError(
                    f"budget is {self.epochs:g} epochs, and the data have no length (a stream), so that nobody knows "
                    "how far an epoch goes; allowed: steps, samples, seconds, such as budget={steps: 1000}"
                )
            per_epoch = max(1, -(-batches // accumulate))
            return max(round(self.epochs * per_epoch), 1 if self.epochs > 0 else 0)
        if self.samples is not None:
            return -(-self.samples // (batch_size * accumulate))
        return None

    def validation_steps(self, batches: int | None, *, accumulate: int = 1) -> int | None:
        """Steps between validations inside an epoch: a fifth of the run where it is shorter than one, or may be.

        >>> Budget(steps=20).validation_steps(50), Budget(steps=20).validation_steps(5)
        (4, None)
        """
        inside = self.steps is not None and (batches is None or self.steps * accumulate < batches)
        return -(-self.steps // 5) if inside and self.steps else None

    def part(self, share: float) -> Budget:
        """A share of it, in the same unit; whole units are rounded, at least one.

        >>> Budget(steps=10).part(0.25)
        Budget(steps=2)
        """
        if self.epochs is not None:
            return Budget(epochs=self.epochs * share)
        if self.seconds is not None:
            return Budget(seconds=self.seconds * share)
        if self.steps is not None:
            return Budget(steps=max(1, round(self.steps * share)) if self.steps else 0)
        assert self.samples is not None
        return Budget(samples=max(1, round(self.samples * share)) if self.samples else 0)

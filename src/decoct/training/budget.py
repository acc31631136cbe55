"""Budget: how long to train."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from decoct.spec import Spec


class Budget(Spec):
    """How long to train, in exactly one unit. A fraction of an epoch is rounded to steps, at least one.

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

    def steps_for(self, batches: int, *, accumulate: int = 1, batch_size: int = 1) -> int | None:
        """Optimizer steps of this budget where an epoch has `batches` batches; None when it is in seconds."""
        per_epoch = max(1, -(-batches // accumulate))
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(round(self.epochs * per_epoch), 1 if self.epochs > 0 else 0)
        if self.samples is not None:
            return -(-self.samples // (batch_size * accumulate))
        return None

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

"""Limits: what the chain of a run as a whole must keep, as a recipe says it."""

from __future__ import annotations

from pydantic import Field, model_validator

from decoct.spec import Spec

NAMES = ("max_quality_loss", "max_latency_ms", "max_size_bytes", "max_memory_bytes")


class Limits(Spec):
    """What the chain of a run must keep as a whole; the last of its artifacts that keeps all of them is kept.

    `max_quality_loss`: by how much the task's main metric on validation data may be worse than the teacher's, in the
    metric's own units (0.01 of accuracy is one point); `max_latency_ms`: one call, one sample, one thread, at
    `quantile` of the calls (0.5 is the median); `max_size_bytes`: all files that ship; `max_memory_bytes`: by how much
    running the file raises a process's peak. A model that no step has exported is measured as a float ONNX file.

    >>> Limits(max_size_bytes=20_000).asked()
    {'max_size_bytes': 20000.0}
    """

    max_quality_loss: float | None = Field(default=None, ge=0)
    max_latency_ms: float | None = Field(default=None, gt=0)
    quantile: float = Field(default=0.5, gt=0, lt=1)
    max_size_bytes: int | None = Field(default=None, ge=1)
    max_memory_bytes: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something_is_limited(self) -> Limits:
        if not self.asked():
            raise ValueError(f"no limit; give {', '.join(NAMES[:-1])} or {NAMES[-1]}")
        if "quantile" in self.model_fields_set and self.max_latency_ms is None:
            raise ValueError(f"quantile is {self.quantile:g} and belongs to max_latency_ms, which is missing")
        return self

    def asked(self) -> dict[str, float]:
        """Those that are set, by name."""
        return {name: float(value) for name in NAMES if (value := getattr(self, name)) is not None}

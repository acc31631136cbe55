"""What the typed records of a run are made of: tolerant fields, and the base of all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def finite(value: Any) -> Any:
    """None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_gaps(value: Any) -> Any:
    """A mapping without what is absent."""
    if isinstance(value, Mapping):
        return {key: each for key, each in value.items() if each is not None and finite(each) is not None}
    return {} if value is None else value


def as_list(value: Any) -> Any:
    """An empty list for what is absent."""
    return [] if value is None else value


def as_mapping(value: Any) -> Any:
    """An empty mapping for what is absent."""
    return {} if value is None else value


Number = Annotated[float | None, BeforeValidator(finite)]
"""A finite number; NaN and infinities count as absent."""
Scores = Annotated[dict[str, float], BeforeValidator(without_gaps)]
"""Numbers by name; those that are absent or not finite are left out."""


class Record(BaseModel):
    """A part of a record; unknown keys are ignored, since later steps add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")

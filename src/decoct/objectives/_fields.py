"""The field types that objectives and refinements share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

from decoct.training.schedules import Scalar, bounds


def _positive(value: Any) -> Any:
    low = bounds(value)[0]
    if not low > 0:
        raise ValueError(f"{low} is no temperature; allowed: numbers above 0")
    return value


Temperature = Annotated[Scalar, AfterValidator(_positive)]
"""A temperature: a number above 0, or a schedule of such numbers."""


def _fraction(value: Any) -> Any:
    low, high = bounds(value)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{low if low < 0 else high} is out of range; allowed: 0 to 1")
    return value


Fraction = Annotated[Scalar, AfterValidator(_fraction)]
"""A number from 0 to 1, or a schedule of such numbers."""

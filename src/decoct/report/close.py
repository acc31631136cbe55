"""Records of a closer look: what a model is worth on each class, and samples on which two models differ."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from decoct.report.fields import Number, Record, as_list, as_mapping


class Curve(Record):
    """Precision over recall, thresholds falling from the first point to the last."""

    recall: Annotated[list[Number], BeforeValidator(as_list)] = []
    precision: Annotated[list[Number], BeforeValidator(as_list)] = []


class ClassFigures(Record):
    """What one model is worth on one class."""

    label: str | int | float = ""
    n: int = 0
    precision: Number = None
    recall: Number = None
    f1: Number = None
    average_precision: Number = None
    curve: Annotated[Curve, BeforeValidator(as_mapping)] = Curve()


class Said(Record):
    """What one model said of a sample: a class and how sure it was, or numbers."""

    class_: str = Field(default="", alias="class")
    probability: Number = None
    values: Annotated[list[Number], BeforeValidator(as_list)] = []


class Shown(Record):
    """A sample as people look at it; `image` is a data URI of a PNG."""

    text: str = ""
    image: str = ""
    row: Annotated[dict[str, str | float | int | None], BeforeValidator(as_mapping)] = {}


class Example(Record):
    """A sample on which two models differ."""

    index: int = 0
    true: str | list[Number] | None = None
    model: Said = Said()
    reference: Said = Said()
    shown: Annotated[Shown, BeforeValidator(as_mapping)] = Shown()


class Examples(Record):
    """Samples on which `model` and `reference` differ; `apart`: how many there are in all."""

    model: str = ""
    reference: str = ""
    split: str = ""
    apart: int = 0
    items: Annotated[list[Example], BeforeValidator(as_list)] = []

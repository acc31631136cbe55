"""BlackBox: a service or function that names classes and says nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from decoct.errors import RecipeError
from decoct.models.base import Interface, Model
from decoct.models.functions import function_fingerprint
from decoct.models.http_client import TokenName

if TYPE_CHECKING:
    from torch import nn


class BlackBox(Model):
    """A teacher that gives labels or text only.

    `url`: a service that takes `{"inputs": [...]}` (raw samples: texts, rows, images as nested lists) and answers
    `{"labels": [...]}`, names or ids of classes; `token`: the environment variable, DECOCT_NAME, that holds its bearer
    token, where it wants one; who may have it stands in DECOCT_NAME_HOST. From Python a function of a list of samples
    stands in its place: `name` in the table of given objects, `fingerprint` of its source and of the values that it
    holds. How its answers count is said in the step: `teachers: {teacher: {use: black_box, confidence: 0.8}}`.
    """

    use: ClassVar[str] = "black_box"
    positional: ClassVar[tuple[str, ...]] = ("url",)
    url: str | None = None
    token: TokenName = ""
    name: str | None = None
    fingerprint: str = ""

    @model_validator(mode="after")
    def _one_of_both(self) -> BlackBox:
        if (self.url is None) == (self.name is None):
            raise ValueError("a black box is behind a url, or a function that came from Python; give url")
        return self

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        raise RecipeError(f"{self.url or self.name} is a black box, which answers but cannot be trained")


def given_function(name: str, function: Callable[..., Any]) -> BlackBox:
    """The Spec that stands for a function from a list of samples to their labels.

    RecipeError where nobody can tell when it changes and it has no attribute `fingerprint`.
    """
    return BlackBox(name=name, fingerprint=function_fingerprint(name, function))

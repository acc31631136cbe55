"""Rewrite: replaces layers of a student by smaller ones, and lets it recover."""

from __future__ import annotations

from typing import Annotated, ClassVar

from decoct.spec import Choice
from decoct.steps.compressing.recovering import Recovering
from decoct.training.compression import Scheme


class Rewrite(Recovering):
    """Replaces layers of a student by smaller ones, and lets it recover.

    `scheme`: what is done, one of `decoct list rewriting`.
    """

    use: ClassVar[str] = "rewrite"
    scheme: Annotated[Scheme, Choice("decoct.rewriting")]

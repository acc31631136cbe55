"""Prune: removes channels, heads or layers of a student, or sets weights to zero, and lets it recover."""

from __future__ import annotations

from typing import Annotated, ClassVar

from decoct.compression import Scheme
from decoct.spec import Choice
from decoct.steps.compressing import Compressing


class Prune(Compressing):
    """Removes channels, heads or layers of a student, or sets weights to zero, and lets it recover.

    `scheme`: what is done, one of `decoct list pruning`.
    """

    use: ClassVar[str] = "prune"
    scheme: Annotated[Scheme, Choice("decoct.pruning")]

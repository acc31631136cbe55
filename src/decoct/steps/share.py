"""Share: lets a student use weights more than once, and lets it recover."""

from __future__ import annotations

from typing import Annotated, ClassVar

from decoct.compression import Scheme
from decoct.spec import Choice
from decoct.steps.compressing import Compressing


class Share(Compressing):
    """Lets a student use weights more than once, and lets it recover.

    `scheme`: what is done, one of `decoct list sharing`.
    """

    use: ClassVar[str] = "share"
    scheme: Annotated[Scheme, Choice("decoct.sharing")]

"""Share: lets a student use weights more than once, and lets it recover."""

from __future__ import annotations

from typing import Annotated, ClassVar

from decoct.spec import Choice
from decoct.steps.compressing.recovering import Recovering
from decoct.training.compression import Scheme


class Share(Recovering):
    """Lets a student use weights more than once, and lets it recover.

    `scheme`: what is done, one of `decoct list sharing`.
    """

    use: ClassVar[str] = "share"
    scheme: Annotated[Scheme, Choice("decoct.sharing")]

"""Prune: removes channels, heads or layers of a student, or sets weights to zero, and lets it recover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from decoct.pruning.channels import Channels
from decoct.spec import Choice
from decoct.steps.compressing.recovering import Recovering
from decoct.training.compression import Scheme


class Prune(Recovering):
    """Removes channels, heads or layers of a student, or sets weights to zero, and lets it recover.

    `scheme`: what is done, one of `decoct list pruning`; channels by default. `ratio`: short for the scheme's own, of
    channels, heads, layers, magnitude or movement.
    """

    use: ClassVar[str] = "prune"
    scheme: Annotated[Scheme, Choice("decoct.pruning")] = Channels()
    ratio: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _ratio_is_the_schemes(cls, data: Any) -> Any:
        """Moves `ratio` into the scheme, so that equal recipes are equal data."""
        if not isinstance(data, Mapping) or data.get("ratio") is None:
            return data
        given, scheme = data["ratio"], data.get("scheme", {"use": Channels.use})
        if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < 1:
            return data
        fields = scheme.plain(defaults=False) if isinstance(scheme, Scheme) else dict(scheme)
        found = Choice("decoct.pruning").catalogue.resolve(str(fields.get("use")))
        if "ratio" not in found.model_fields:
            raise ValueError(
                f"ratio: the scheme {fields['use']} has none; its settings: {', '.join(found.model_fields)}"
            )
        if fields.setdefault("ratio", given) != given:
            raise ValueError(f"ratio is {given:g} and scheme.ratio {fields['ratio']:g}; give one of them")
        return {**{key: value for key, value in data.items() if key != "ratio"}, "scheme": fields}

"""One colour for each model, and for each step that trains one, over all charts of a page."""

from __future__ import annotations

from collections.abc import Sequence

from decoct.report.curves import Log
from decoct.report.records import Results

SERIES = 8
"""Colours that the page has; further names take them again, told apart by dash and shape."""


class Colours:
    """Names in the order in which they take colours: models first, then what trained none of them.

    >>> colours = Colours({"kd": "student"}, ["teacher", "student"])
    >>> colours["teacher"], colours["student"], colours["kd"], colours["cross_entropy"]
    (0, 1, 1, 2)
    """

    def __init__(self, same: dict[str, str], names: Sequence[str]) -> None:
        self._same, self._places = same, {name: place for place, name in enumerate(dict.fromkeys(names))}

    def __getitem__(self, name: str) -> int:
        """The place of a name's colour: it takes the next one when it is first asked for."""
        return self._places.setdefault(self._same.get(name, name), len(self._places))

    def of(self, names: Sequence[str]) -> list[str]:
        """The colours of names, as the page's script resolves them."""
        return [f"series-{self[name] % SERIES + 1}" for name in names]

    @classmethod
    def over(cls, results: Sequence[Results], logs: Sequence[Log]) -> Colours:
        """The colours of a page: a step that trained has that of the first model that it became."""
        models = [model for each in results for model in each.models]
        names = [model.name for model in models]
        same: dict[str, str] = {}
        trained = {step for log in logs for step in (*log.steps(), *(curve.step for curve in log.validation))}
        for model in models:
            last = next((step for step in reversed(model.chain or [model.step]) if step in trained), None)
            if last is not None and last not in names:
                same.setdefault(last, model.name)
        return cls(same, names)

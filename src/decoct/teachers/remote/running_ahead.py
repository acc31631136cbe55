"""RunsAhead, a source that asks its teachers about batches before the student gets to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from decoct.data.base import Source
from decoct.errors import DecoctError, RecipeError
from decoct.outputs import Batch
from decoct.teachers.remote.base import Ahead


@dataclass(frozen=True)
class _Drawn:
    """A batch with its tickets, the end of an epoch (None), or what went wrong; and the position right after it."""

    what: Batch | DecoctError | None
    position: Mapping[str, Any]


class RunsAhead(Source):
    """The batches of `source` in its order, each with tickets for the answers of `teachers`.

    Up to `ahead` batches are drawn before they are asked for (None: as many as the teachers have room for), into the
    next epoch too, so that the teachers work while the student does. The position is that of the batches handed out:
    `load_state_dict` forgets what was drawn beyond it, and a fresh RunsAhead with that position hands out exactly the
    batches that would have followed. An error of the source is raised where its batch would have come. `beside`: about
    which batches beside the main one, by name, a teacher is asked too.

    Of a source that is not fixed nothing is drawn beforehand, since its batches are not there yet: a batch is drawn and
    asked about when it is wanted, and what teachers do at the same time is to answer about one window.
    """

    def __init__(
        self,
        source: Source,
        teachers: Sequence[Ahead],
        *,
        ahead: int | None = None,
        beside: Mapping[Ahead, Collection[str]] | None = None,
    ) -> None:
        if not teachers:
            raise RecipeError("running ahead needs a teacher that answers elsewhere, and there is none")
        if ahead is not None and ahead < 1:
            raise RecipeError(f"ahead is {ahead}; allowed: 1 and more")
        self._source, self._teachers = source, tuple(teachers)
        self._ahead = min(each.room for each in teachers) if ahead is None else ahead
        self._queue: deque[_Drawn] = deque()
        self._drawing: Iterator[Batch] | None = None
        self._position = source.state_dict()
        self._beside = beside or {}
        self.fixed = source.fixed

    @property
    def length(self) -> int | None:
        return self._source.length

    def __iter__(self) -> Iterator[Batch]:
        if not self.fixed:
            yield from self._when_wanted()
            return
        while True:
            self._fill()
            drawn = self._queue.popleft()
            self._position = drawn.position
            if isinstance(drawn.what, DecoctError):
                raise drawn.what
            if drawn.what is None:
                return
            yield drawn.what

    def _when_wanted(self) -> Iterator[Batch]:
        for batch in self._source:
            self._position = self._source.state_dict()
            yield self._asked(batch)
        self._position = self._source.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return dict(self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.close()
        self._source.load_state_dict(state)
        self._position = dict(state)

    def close(self) -> None:
        """Drops what is in flight and stops drawing; before iterating again, `load_state_dict`."""
        for drawn in self._queue:
            if isinstance(drawn.what, Batch):
                self._drop(drawn.what)
        self._queue.clear()
        drawing, self._drawing = self._drawing, None
        if isinstance(drawing, Generator):
            drawing.close()

    def _fill(self) -> None:
        """Draws until `ahead` batches wait, something went wrong, or an epoch proves to have none."""
        while sum(isinstance(each.what, Batch) for each in self._queue) < self._ahead:
            last = [each.what for each in self._queue][-2:]
            if last == [None, None] or (last and isinstance(last[-1], DecoctError)):
                return
            self._queue.append(self._draw())

    def _draw(self) -> _Drawn:
        try:
            if self._drawing is None:
                self._drawing = iter(self._source)
            batch = next(self._drawing, None)
        except DecoctError as error:
            self._drawing = None
            return _Drawn(error, self._source.state_dict())
        if batch is None:
            self._drawing = None
        return _Drawn(None if batch is None else self._asked(batch), self._source.state_dict())

    def _asked(self, batch: Batch) -> Batch:
        also = {name: self._asked_of(each, self._readers(name)) for name, each in batch.also.items()}
        return replace(self._asked_of(batch, self._teachers), also=also)

    def _asked_of(self, batch: Batch, teachers: Sequence[Ahead]) -> Batch:
        if not teachers:
            return batch
        views = tuple(self._asked_of(each, teachers) for each in batch.views)
        return replace(batch, tickets={each: each.submit(batch) for each in teachers}, views=views)

    def _readers(self, name: str) -> list[Ahead]:
        return [each for each in self._teachers if name in self._beside.get(each, ())]

    def _drop(self, batch: Batch) -> None:
        for teacher, ticket in batch.tickets.items():
            teacher.drop(ticket)
        for each in (*batch.views, *batch.also.values()):
            self._drop(each)

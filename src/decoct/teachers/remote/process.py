"""ProcessTeacher: a teacher in other processes of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.spec import Choice
from decoct.teachers.base import Reading, Teacher
from decoct.teachers.remote.base import Ahead
from decoct.teachers.remote.opening import Opening, asked, opening
from decoct.teachers.remote.workers import Workers


class ProcessTeacher(Teacher):
    """A teacher that works in processes of its own while the student trains.

    `workers` processes of `threads` threads each; `ahead` batches are asked for before the student gets to them;
    a worker that dies is started again and asked again, up to `restarts` times in a row; `device` where they compute
    (None: that of the step); `teacher`: how it answers there (None: what suits the subject). With the thread count of
    the live teacher its answers are the same bits. Each worker holds the teacher's weights once more.
    """

    use: ClassVar[str] = "process"
    not_in_key: ClassVar[tuple[str, ...]] = ("workers", "ahead", "restarts", "device")  # other threads, other bits
    workers: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    ahead: int = Field(default=4, ge=1)
    restarts: int = Field(default=3, ge=0)
    device: str | None = None
    teacher: Annotated[Teacher, Choice("decoct.teachers")] | None = None

    def open(
        self,
        subject: Any,
        reading: Reading,
        needs: Needs,
        *,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """An InProcesses while the body runs; `subject` a module, an artifact or the path of an ONNX file.

        When the body ends, the contract is checked in each worker; after an exception they are ended at once.
        """
        told = opening(
            subject,
            reading,
            needs,
            device=self.device or device,
            autocast=autocast,
            kind=self.teacher,
        )
        return self._opened(told)

    @contextmanager
    def _opened(self, told: Opening) -> Iterator[Predictor]:
        pool = Workers(told, workers=self.workers, threads=self.threads, restarts=self.restarts)
        orderly = False
        try:
            yield InProcesses(pool, told.reading.reader, self.ahead)
            orderly = True
        finally:
            pool.close(orderly=orderly)


class InProcesses(Ahead):
    """A teacher whose answers come from worker processes."""

    def __init__(self, pool: Workers, side: str, room: int) -> None:
        super().__init__(side, room)
        self._pool = pool

    def send(self, batch: Batch) -> Future[Outputs]:
        answer: Future[Outputs] = self._pool.ask(asked(batch, self.side))
        answer.add_done_callback(self._count)
        return answer

    def pids(self) -> list[int]:
        """The process ids of the workers that live."""
        return self._pool.pids()

    def _count(self, answer: Future[Outputs]) -> None:
        self.counts.answered += not answer.cancelled() and answer.exception() is None
        self.counts.resent, self.counts.restarts = self._pool.resent, self._pool.restarted

"""RayTeacher: a teacher on a Ray cluster; and jobs on Ray Data."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import Field

from decoct.errors import RecipeError, ResourceError
from decoct.network import is_here, is_offline
from decoct.outputs import Batch, Needs, Outputs, Predictor
from decoct.spec import Choice
from decoct.teachers.base import Reading, Teacher
from decoct.teachers.remote.base import Asking
from decoct.teachers.remote.faults import Fault
from decoct.teachers.remote.opening import Opening, asked, opening
from decoct.teachers.remote.wire import decoded, encoded

T = TypeVar("T")
Message = tuple[bytes, list[np.ndarray]]


class RayTeacher(Teacher):
    """A teacher in actors of a Ray cluster while the student trains here.

    `address` of a running cluster ("auto": the one of this machine); None starts one on this machine, which ends with
    the step. `workers` actors of `threads` processors each; `ahead` batches are asked for before the student gets to
    them. A dead actor is started again by Ray and asked again, up to `restarts` times for one batch. `device` where
    they compute ("cuda" asks the cluster for one GPU an actor); `teacher`: how it answers there. On other machines the
    package must be installed, and an artifact's folder must be reachable.
    """

    use: ClassVar[str] = "ray"
    not_in_key: ClassVar[tuple[str, ...]] = ("address", "workers", "ahead", "restarts", "device")
    address: str | None = None
    workers: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    ahead: int = Field(default=4, ge=1)
    restarts: int = Field(default=3, ge=0)
    device: str = "cpu"
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
        """An OnRay while the body runs; `subject` a module, an artifact or the path of an ONNX file."""
        needs = replace(needs, forms=needs.forms - {"factored"})  # Ray's messages would each hold the head
        told = opening(subject, reading, needs, device=self.device, autocast=autocast, kind=self.teacher)
        return self._opened(told)

    @contextmanager
    def _opened(self, told: Opening) -> Iterator[Predictor]:
        with cluster(self.address, cpus=self.workers * self.threads) as ray:
            kind = ray.remote(_Answering).options(
                num_cpus=self.threads,
                num_gpus=int(self.device.startswith("cuda")),
                max_restarts=-1,
                max_task_retries=self.restarts,
            )
            sent = [ray.put(told)]  # held here, so that an actor that starts again finds it
            actors = [kind.remote(sent, self.threads) for _ in range(self.workers)]
            on_ray = OnRay(ray, actors, told.reading.reader, self.ahead)
            try:
                yield on_ray
                on_ray.close()
            finally:
                on_ray.kill()
                on_ray.end()


class OnRay(Asking):
    """A teacher whose answers come from Ray actors. `counts.resent` stays 0: Ray asks again by itself."""

    def __init__(self, ray: Any, actors: list[Any], side: str, room: int) -> None:
        super().__init__(side, room, max(room, len(actors)))
        self._ray, self._actors = ray, actors
        self._turn = itertools.count()
        self._seen: set[tuple[int, int]] = set()

    def pids(self) -> list[int]:
        """The process ids of the actors, as they are now."""
        return [self._get(each.pid.remote()) for each in self._actors]

    def close(self) -> None:
        """Checks the contract in each actor; raises what that found."""
        for fault in [self._get(each.close.remote()) for each in self._actors]:
            if fault is not None:
                raise fault.error()

    def kill(self) -> None:
        """Ends the actors."""
        for each in self._actors:
            self._ray.kill(each)

    def ask(self, batch: Batch) -> Outputs:
        place = next(self._turn) % len(self._actors)
        pid, answer = self._get(self._actors[place].answer.remote(*_message(asked(batch, self.side))))
        if isinstance(answer, Fault):
            raise answer.error()
        with self._lock:
            self._seen.add((place, pid))
            self.counts.restarts = len(self._seen) - len({each for each, _ in self._seen})
        outputs: Outputs = decoded(answer[0], [aligned(each) for each in answer[1]])
        return outputs

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            text = f"the teacher's Ray actor: {type(error).__name__}: {str(error).splitlines()[0]}"
            raise ResourceError(f"{text}; look at the cluster's logs, is memory short?") from error


class _Answering:
    """The actor."""

    def __init__(self, sent: list[Any], threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        self._stack = ExitStack()
        self._fault: Fault | None = None
        try:
            opened: Opening = ray.get(sent[0])
            self._answer = self._stack.enter_context(opened())
        except BaseException as error:  # handed to whoever asks
            self._fault = Fault.of(error)

    def answer(self, head: bytes, buffers: list[np.ndarray]) -> tuple[int, Message | Fault]:
        if self._fault is not None:
            return os.getpid(), self._fault
        try:
            return os.getpid(), _message(self._answer(decoded(head, [aligned(each) for each in buffers])))
        except BaseException as error:  # handed to whoever waits for this answer
            return os.getpid(), Fault.of(error)

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> Fault | None:
        try:
            self._stack.close()
        except BaseException as error:  # handed to whoever closes
            return Fault.of(error)
        return self._fault


def run_jobs_on_ray(
    jobs: Iterable[T],
    factory: Callable[[], Callable[[T], bytes]],
    *,
    workers: int,
    address: str | None = None,
    threads: int = 1,
    restarts: int = 3,
) -> Iterator[tuple[int, bytes]]:
    """As `run_jobs`, by `workers` actors of Ray Data on the cluster at `address` (None: one started on this machine).

    Results come as they stream in, each once; what `factory` makes, where it is a context manager, serves one job. A
    dead actor is started again and its jobs are repeated, up to `restarts` times.
    """
    with cluster(address, cpus=workers * threads) as ray:
        dumps = ray.cloudpickle.dumps
        rows = [{"number": number, "job": dumps(job)} for number, job in enumerate(jobs)]
        if not rows:
            return
        data = _ray_data().from_items(rows, override_num_blocks=len(rows))
        results = data.map_batches(
            _Working,
            fn_constructor_args=(factory, threads),
            compute=_ray_data().ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            batch_size=1,
            num_cpus=threads,
            ray_remote_args_fn=lambda: {"max_task_retries": restarts},
        )
        try:
            for row in results.iter_rows():
                fault = row["fault"]
                if fault:
                    raise Fault(*fault.split("\0", 2)).error()
                yield int(row["number"]), row["result"]
        except ray.exceptions.RayError as error:
            text = f"labelling on Ray: {type(error).__name__}: {str(error).splitlines()[0]}"
            raise ResourceError(f"{text}; look at the cluster's logs, is memory short?") from error


class _Working:
    """An actor of Ray Data: one job a batch.

    Nobody tells such an actor that the work is done. So what does a job, where it is a context manager, is left after
    each, before the result is given: a teacher that changed gives none.
    """

    def __init__(self, factory: Callable[[], Callable[[Any], bytes]], threads: int) -> None:
        torch.set_num_threads(threads)
        self._factory = factory
        self._kept: Callable[[Any], bytes] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        result, fault = b"", ""
        try:
            result = self._done(ray.cloudpickle.loads(batch["job"][0]))
        except BaseException as error:  # handed to whoever waits for this result
            told = Fault.of(error)
            fault = "\0".join((told.kind, told.text, told.trace))
        return {"number": batch["number"], "result": [b"" if fault else result], "fault": [fault]}

    def _done(self, job: Any) -> bytes:
        made, self._kept = self._kept or self._factory(), None
        if not isinstance(made, AbstractContextManager):
            self._kept = made
            return made(job)
        with made:
            result = made(job)
        return result


@contextmanager
def cluster(address: str | None = None, *, cpus: int = 1) -> Iterator[Any]:
    """The module `ray`, joined to the cluster at `address`, or to one started here; one that was started here ends.

    A program that has joined a cluster stays in it. ResourceError where Ray is absent or the cluster does not answer.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ResourceError('Ray is not installed; run pip install "decoct[scale]"') from error
    if ray.is_initialized():
        own = str(ray.get_runtime_context().gcs_address)
        if address not in (None, "auto") and _port(str(address)) != _port(own):
            raise RecipeError(
                f"address is {address!r} and this program is in the Ray cluster at {own}; give that, or call "
                "ray.shutdown() first"
            )
        yield ray
        return
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": max(cpus, os.cpu_count() or 1)}
    if is_offline():
        if address not in (None, "auto") and not is_here(str(address).rpartition("://")[2].rpartition(":")[0]):
            raise ResourceError(f"offline: the Ray cluster at {address} would be spoken to; leave --offline out")
        local["_node_ip_address"] = "127.0.0.1"
    local["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)}}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
    except (ConnectionError, ValueError, RuntimeError) as error:
        hint = "does it run? A cluster with tokens wants RAY_AUTH_MODE=token in the environment" if address else ""
        raise ResourceError(f"no Ray cluster answers at {address or 'this machine'} ({error}); {hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _port(address: str) -> str:
    """By which an address is known: a host has several names."""
    return address.rpartition(":")[2]


def _message(value: Any) -> Message:
    head, buffers = encoded(value)
    return head, [np.frombuffer(each, np.uint8) for each in buffers]


def aligned(memory: np.ndarray) -> np.ndarray:
    """A writable copy, aligned as torch aligns: kernels round otherwise elsewhere."""
    copy: np.ndarray = torch.empty(memory.nbytes, dtype=torch.uint8).numpy()
    copy[:] = memory
    return copy


def _ray_data() -> Any:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data

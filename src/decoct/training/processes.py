"""Processes: how many train together, what they tell each other, and how they part."""

from __future__ import annotations

import contextlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from decoct import errors
from decoct.errors import DecoctError, RecipeError, ResourceError
from decoct.training.launching import STORE
from decoct.training.signals import Interrupted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=365)
"""How long a process waits for what another does alone; one that dies is noticed at once."""
LOST = ("Connection closed", "Connection reset", "Broken pipe", "Read error", "Write error", "Connection refused")
"""What gloo says when another process is gone."""


class Processes(ABC):
    """`count` processes of one run, this one being number `rank`; of them `local_rank` is counted on one machine.

    Whatever one process does for all (files, scores, decisions), the first does; the others wait for it. Methods that
    take tensors work where these lie, the others on plain data; each must be called by all processes alike.
    """

    count: int
    rank: int
    local_rank: int

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @abstractmethod
    def shared(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, plain JSON data; its error is raised in all of them."""

    @abstractmethod
    def gathered(self, content: bytes) -> list[bytes]:
        """The bytes of each process, in the first one; empty in the others."""

    @abstractmethod
    def most(self, values: Sequence[float]) -> list[float]:
        """The largest of each number over all processes."""

    @abstractmethod
    def added(self, values: Sequence[float]) -> list[float]:
        """Each number added up over all processes."""

    @abstractmethod
    def sum(self, tensor: Tensor) -> None:
        """Adds a tensor up over all processes, in place, on its device."""

    @abstractmethod
    def every(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, stacked in the order of ranks."""

    @abstractmethod
    def copy(self, tensor: Tensor) -> None:
        """Gives a tensor the first process's numbers, in place, on its device."""

    def wait(self) -> None:
        """Returns when all processes are here."""
        self.most([0.0])

    def alone(self, work: Callable[[], T], then: Callable[[], T]) -> T:
        """The first process does `work` while the others wait; what they get is `then`, done afterwards."""
        made: list[T] = []
        self.shared(lambda: made.append(work()))
        return made[0] if self.first else then()

    def in_turn(self, work: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
        """The first process does `work`, then all others do: what is fetched and cached is fetched once.

        Each of several does `meanwhile` once, while it would wait for the others.
        """
        if self.several and not self.first:
            meanwhile()
        found = self.alone(work, work)
        if self.several and self.first:
            meanwhile()
        return found

    @contextlib.contextmanager
    def by_first(self, held: AbstractContextManager[Any]) -> Iterator[None]:
        """`held` around the body in the first process, nothing in the others; an error on entering is raised in all."""
        with contextlib.ExitStack() as stack:
            self.shared(lambda: stack.enter_context(held) and None)
            yield


class One(Processes):
    """One process by itself."""

    count, rank, local_rank = 1, 0, 0

    def shared(self, make: Callable[[], T]) -> T:
        return make()

    def gathered(self, content: bytes) -> list[bytes]:
        return [content]

    def most(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def added(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def sum(self, tensor: Tensor) -> None:
        pass

    def every(self, tensor: Tensor) -> Tensor:
        return tensor[None]

    def copy(self, tensor: Tensor) -> None:
        pass


ONE = One()


class Several(Processes):
    """Processes that torch.distributed joined: gloo for plain data, and NCCL for tensors that lie on GPUs."""

    _store: ClassVar[Any] = None
    _joined: ClassVar[int] = 0

    def __init__(self, kind: str) -> None:
        from torch import distributed

        self._own = not distributed.is_initialized()
        self._notes: Any = None
        if self._own:
            self._begin("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
        self.count, self.rank = distributed.get_world_size(), distributed.get_rank()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._talk: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self._work: Any = distributed.new_group() if kind == "cuda" else self._talk

    def _begin(self, backend: str) -> None:
        from torch import distributed

        if Several._store is None:
            path = os.environ.get(STORE)
            where = f"file://{path}?rank={os.environ['RANK']}&world_size={os.environ['WORLD_SIZE']}"
            Several._store = next(distributed.rendezvous(where if path else "env://"))
        store, rank, count = Several._store
        Several._joined += 1
        self._notes = distributed.PrefixStore(f"decoct{Several._joined}", store)
        distributed.init_process_group(backend, store=self._notes, rank=rank, world_size=count)

    def shared(self, make: Callable[[], T]) -> T:
        if not self.first:
            return self._received()
        try:
            made = make()
            text = json.dumps({"made": made})
        except BaseException as error:
            self._say(json.dumps({"error": described(error)}))
            raise
        self._say(text)
        return made

    def _say(self, text: str) -> None:
        import torch

        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self._broadcast(torch.tensor([content.numel()]))
        self._broadcast(content)

    def _received(self) -> Any:
        import torch

        length = torch.zeros(1, dtype=torch.int64)
        self._broadcast(length)
        content = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(content)
        message = json.loads(content.numpy().tobytes())
        if "error" in message:
            raise raised(message["error"])
        return message["made"]

    def _broadcast(self, tensor: Tensor) -> None:
        from torch import distributed

        distributed.broadcast(tensor, group=self._talk, group_src=0)

    def gathered(self, content: bytes) -> list[bytes]:
        import torch
        from torch import distributed

        longest = int(self.most([float(len(content))])[0])
        own = torch.zeros(8 + longest, dtype=torch.uint8)
        framed = len(content).to_bytes(8, "little") + content
        own[: len(framed)] = torch.frombuffer(bytearray(framed), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.count)] if self.first else None
        distributed.gather(own, every, group=self._talk, group_dst=0)
        found = [each.numpy().tobytes() for each in every or []]
        return [each[8 : 8 + int.from_bytes(each[:8], "little")] for each in found]

    def most(self, values: Sequence[float]) -> list[float]:
        from torch import distributed

        return self._reduced(values, distributed.ReduceOp.MAX)

    def added(self, values: Sequence[float]) -> list[float]:
        from torch import distributed

        return self._reduced(values, distributed.ReduceOp.SUM)

    def _reduced(self, values: Sequence[float], how: Any) -> list[float]:
        import torch
        from torch import distributed

        table = torch.tensor(list(values), dtype=torch.float64)
        distributed.all_reduce(table, op=how, group=self._talk)
        return table.tolist()

    def sum(self, tensor: Tensor) -> None:
        from torch import distributed

        distributed.all_reduce(tensor, group=self._work)

    def every(self, tensor: Tensor) -> Tensor:
        import torch
        from torch import distributed

        found = [torch.empty_like(tensor) for _ in range(self.count)]
        distributed.all_gather(found, tensor, group=self._work)
        return torch.stack(found)

    def copy(self, tensor: Tensor) -> None:
        from torch import distributed

        distributed.broadcast(tensor, group=self._work, group_src=0)

    def note(self, error: BaseException) -> None:
        """Leaves word of why this process goes, so that the others can say it."""
        if self._notes is not None:
            with contextlib.suppress(RuntimeError):
                self._notes.set("failed", json.dumps(described(error)))

    def noted(self, seconds: float = 2.0) -> BaseException | None:
        """Why another process went; None where none left word."""
        if self._notes is None:
            return None
        try:
            self._notes.wait(["failed"], timedelta(seconds=seconds))
            return raised(json.loads(self._notes.get("failed")))
        except RuntimeError:
            return None

    def leave(self) -> None:
        """Closes all connections; gloo's threads must be gone before the interpreter ends."""
        from torch import distributed

        talk, work = self._talk, self._work
        self._talk = self._work = None
        if not distributed.is_initialized():
            return
        if self._own:
            del talk, work
            distributed.destroy_process_group()
        else:
            for group in {talk, work}:
                distributed.destroy_process_group(group)


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """The processes that torchrun, `accelerate launch` or `--nproc` started, connected while the body runs; else ONE.

    After an error in one of them all others end with it: with the same error where it came from the body, with
    ResourceError where a process was killed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield ONE
        return
    import torch

    processes = Several("cuda" if device not in ("cpu", "mps") and torch.cuda.is_available() else "cpu")
    try:
        yield processes
        processes.wait()
    except RuntimeError as error:
        told = _explained(error, processes)
        if told is error:
            raise
        raise told from error
    except BaseException as error:
        processes.note(error)
        raise
    finally:
        processes.leave()


def _explained(error: RuntimeError, processes: Several) -> BaseException:
    """What ended a process whose connections broke: the other's own error, or that it was lost."""
    if not any(text in str(error) for text in LOST):
        processes.note(error)
        return error
    other = processes.noted()
    if other is not None:
        return other
    lost = ResourceError(
        f"another of the {processes.count} processes was lost (killed, or out of memory); the same command continues "
        "from the last checkpoint"
    )
    return lost


def described(error: BaseException) -> dict[str, Any]:
    """An error as plain data."""
    number = getattr(error, "signal", None) if isinstance(error, KeyboardInterrupt) else None
    return {"type": type(error).__name__, "message": str(error), "signal": number}


def raised(data: Mapping[str, Any]) -> BaseException:
    """The error that `described` was given; one that is not decoct's own becomes a ResourceError.

    >>> raised(described(RecipeError("seeds is 0")))
    RecipeError('seeds is 0')
    """
    known = vars(errors).get(data["type"])
    if data["signal"] is not None:
        return Interrupted(data["message"] or "stopped; the same command continues", data["signal"])
    if isinstance(known, type) and issubclass(known, DecoctError):
        return known(data["message"])
    if data["type"] == "KeyboardInterrupt":
        return KeyboardInterrupt(data["message"])
    return ResourceError(f"another process stopped: {data['type']}: {data['message']}")


def same_start(modules: Sequence[torch.nn.Module], processes: Processes) -> None:
    """Gives all processes the first one's parameters and buffers; ResourceError where they built other modules."""
    import torch

    if not processes.several:
        return
    tensors = [each for module in modules for each in (*module.parameters(), *module.buffers())]
    shapes = [[*each.shape] for each in tensors]
    wanted = processes.shared(lambda: shapes)
    if processes.most([float(wanted != shapes)])[0]:
        raise ResourceError(
            "the processes built students of different shapes from one recipe; give them the same files, library "
            "versions and machine"
        )
    for each in tensors:
        if type(each.data) is torch.Tensor:  # a sharded one has been given the same numbers before
            processes.copy(each.data)


ALIKE = "give all of them the same arguments and files"


def refuse_unequal(what: str, value: Any, processes: Processes, advice: str = ALIKE) -> None:
    """RecipeError in all processes where `value`, plain data, is not the same in each."""
    if processes.several and processes.most([float(processes.shared(lambda: value) != value)])[0]:
        raise RecipeError(f"{what} is not the same in the {processes.count} processes; {advice}")


def refusing_other_batches(processes: Processes) -> Callable[[str], None]:
    """What takes the hash of a batch that a loader gave, and raises RecipeError in all where they are not the same."""
    advice = (
        "of each batch every process takes its part, so that samples would be lost and others counted twice; let what "
        "draws them have a generator with one seed everywhere and not look at the rank, or use a DistributedSampler"
    )
    return lambda seen: refuse_unequal("the first batch of an epoch of the loader", seen, processes, advice)

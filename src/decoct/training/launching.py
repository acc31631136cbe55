"""Launching: one command as several processes on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any, Protocol

from decoct.errors import RecipeError, printable
from decoct.network import is_offline
from decoct.threads import choose, cores

LAUNCHER = "DECOCT_LAUNCHER"
"""The environment variable that tells a process who started it."""
STORE = "DECOCT_STORE"
"""The environment variable with the file by which processes find each other where that may ask no name server."""
PATIENCE = 30.0
"""Seconds that processes have to end by themselves after one of them failed or a signal came."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/accel")
"""Where there is one of these, libraries may have woken a driver that no copy of the process can use."""
PR_SET_PDEATHSIG = 1


def asked_for(processes: int) -> bool:
    """Whether a command with `--nproc` has yet to be launched; RecipeError where it runs in another number already."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and processes not in (1, world):
        raise RecipeError(f"--nproc is {processes} and {world} processes were started already; leave --nproc out")
    return processes > 1 and world == 1


def environment(rank: int, count: int, port: int, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of process `rank` of `count`, as torchrun makes it; the cores are shared out among them.

    >>> made = environment(1, 2, 29500, {"OMP_NUM_THREADS": "1"})
    >>> made["RANK"], made["WORLD_SIZE"], made["OMP_NUM_THREADS"]
    ('1', '2', '1')
    """
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        LAUNCHER: os.getpid(),
    }
    made = {**given, **{key: str(value) for key, value in own.items()}}
    choose(made, max(1, cores() // count))
    return made


class Started(Protocol):
    """A process that was started: what this file asks of a Popen."""

    def poll(self) -> int | None: ...
    def send_signal(self, number: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


class Forked:
    """A process that begins as a copy of this one and ends with `work`."""

    def __init__(self, work: Callable[[], None], own: Mapping[str, str], captured: IO[bytes] | None) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_as_started, args=(work, own, captured))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the copy has its own handlers
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode or 0


def _as_started(work: Callable[[], None], own: Mapping[str, str], captured: IO[bytes] | None) -> None:
    """In the copy: what a process that was started has by itself, then the work."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ.clear()
    os.environ.update(own)
    sys.stdout, sys.stderr = sys.__stdout__ or sys.stdout, sys.__stderr__ or sys.stderr
    if captured is not None:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(captured.fileno(), 2)
    try:
        work()
    except Exception:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None


def launch(words: Sequence[str], count: int, work: Callable[[], None], ready: Callable[[], None]) -> int:
    """Runs `decoct` with these words in `count` processes; the exit code of the first, or of the one that failed.

    Where the system can, the processes are copies of this one, which imports once for all of them (`ready`) and goes on
    in each with `work`, the command anew; else each is started by itself.

    The first one talks; what another wrote to stderr is shown where it alone says what went wrong. SIGTERM and Ctrl-C
    go to all. Where one fails the others end too, within half a minute. A process that loses this one ends by itself.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        given = dict(os.environ)
        if is_offline():  # torch asks for the name of 127.0.0.1 where processes meet at a port
            given[STORE] = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "store")
        captured: list[IO[bytes] | None] = [None]
        captured += [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1)]
        copied = _can_be_copied(count, ready)
        running: list[Started] = []
        with _forwarding(running):
            for rank, file in enumerate(captured):
                own = environment(rank, count, port, given)
                running.append(Forked(work, own, file) if copied else _start(words, own, file))
            codes = _ended(running)
        return _told(codes, captured)


def _can_be_copied(count: int, ready: Callable[[], None]) -> bool:
    """Imports what all processes need; whether copies of this one can go on with it, as nothing runs beside it."""
    if sys.platform != "linux" or any(map(os.path.exists, ACCELERATORS)):
        return False
    choose(os.environ, max(1, cores() // count))  # before libraries read it
    try:
        ready()
    except ImportError:
        return False  # each process says what is missing
    return threading.active_count() == 1


def _start(words: Sequence[str], own: Mapping[str, str], captured: IO[bytes] | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "decoct", *words]
    out = None if captured is None else subprocess.DEVNULL
    return subprocess.Popen(command, env=dict(own), stdout=out, stderr=captured, stdin=out, start_new_session=True)


@contextlib.contextmanager
def _forwarding(running: Sequence[Started]) -> Iterator[None]:
    """Signals go to the processes while the body waits for them; those left at its end are killed."""

    def forward(number: int, frame: FrameType | None) -> None:
        for each in running:
            if each.poll() is None:
                each.send_signal(number)

    before: dict[signal.Signals, Any] = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for each in running:
            if each.poll() is None:
                each.kill()
            each.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(running: Sequence[Started]) -> list[int]:
    """The return codes; after one failed, the others get SIGTERM and then SIGKILL where they do not end."""
    failed: float | None = None
    told = False
    while True:
        codes = [each.poll() for each in running]
        done = [code for code in codes if code is not None]
        if len(done) == len(running):
            return done
        now = time.monotonic()
        if failed is None and any(done):
            failed = now
        late = 0.0 if failed is None else now - failed
        for each in running:
            if each.poll() is None and late > PATIENCE:
                each.kill()
            elif each.poll() is None and late > PATIENCE / 2 and not told:
                each.terminate()
        told = late > PATIENCE / 2
        time.sleep(0.02)


def _told(codes: Sequence[int], captured: Sequence[IO[bytes] | None]) -> int:
    """The exit code of all, after what the first process has not said is said."""
    if not any(codes):
        return 0
    for rank, code in enumerate(codes):
        if code < 0:
            name = signal.Signals(-code).name
            sys.stderr.write(f"process {rank} of {len(codes)} was ended by {name}; the same command continues\n")
    rank = next((rank for rank, code in enumerate(codes) if code > 0), 0)
    file = captured[rank]
    if file is not None:
        file.seek(0)
        sys.stderr.write(printable(file.read().decode(errors="replace")))
    first = codes[0] or codes[rank]
    return 128 - first if first < 0 else first


def end_with_launcher() -> None:
    """Lets this process get SIGTERM when the one that launched it dies, where the kernel can (Linux)."""
    parent = os.environ.get(LAUNCHER)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)

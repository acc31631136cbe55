"""What a worker process runs."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import torch

from decoct.teachers.remote.faults import Fault
from decoct.teachers.remote.wire import Sent, encoded, receive, send, write

READY, FAILED, ANSWER, ERROR, CLOSED = "ready", "failed", "answer", "error", "closed"


def work(connection: Connection, threads: int) -> None:
    """Opens what comes first over `connection` and answers what follows, until None comes or the other end is gone.

    Ctrl-C in a terminal reaches the whole group of processes: it is the parent's to decide what it means.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone


def _serve(connection: Connection) -> None:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    kind = FAILED
    try:
        opened = pickle.loads(connection.recv_bytes())  # noqa: S301 - from the process that started this one
        with opened() as answer:
            threading.Thread(target=_read, args=(connection, requests), daemon=True).start()
            send(connection, (READY, None))
            kind, sent = CLOSED, Sent()
            while (request := requests.get()) is not None:
                write(connection, *_answered(answer, request, sent))
                del request
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except BaseException as error:  # handed to the parent, which raises it
        send(connection, (kind, Fault.of(error)))
    else:
        send(connection, (CLOSED, None))


def _answered(answer: Any, request: Any, sent: Sent) -> tuple[bytes, list[memoryview]]:
    """What is written for a request; an answer that cannot be written is an error like any other."""
    try:
        return encoded((ANSWER, answer(request)), sent)
    except BaseException as error:  # handed to whoever waits for this answer
        return encoded((ERROR, Fault.of(error)))


def _read(connection: Connection, requests: queue.SimpleQueue[Any]) -> None:
    """Takes requests as they come, so that the parent never waits to hand one over; leaves with the parent."""
    try:
        while True:
            request = receive(connection)
            requests.put(request)
            if request is None:
                return
    except (EOFError, OSError):
        os._exit(1)

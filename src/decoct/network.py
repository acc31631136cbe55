"""What leaves this machine by itself: nothing that a dependency reports, and nothing at all where that is asked for.

`decoct/__init__.py` calls `switch_off_reports` before anything else is imported, so that it holds for every entry: the
command, Python, workers and actors. What they start inherits the environment.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator
from typing import Any

from decoct.errors import ResourceError

REPORTS = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""Environment variables, and the values with which dependencies report nothing. ONNX Runtime reads its own while it is
imported, and has then opened what it sends from."""
OFFLINE = "DECOCT_OFFLINE"
"""The environment variable by which the processes that this one starts stay offline too."""
HUB = "HF_HUB_OFFLINE"
GLOO = "GLOO_SOCKET_IFNAME"
CONNECTING = frozenset(("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind"))
ASKING = frozenset(("socket.getaddrinfo", "socket.gethostbyname"))


class _Guard:
    """How many bodies want to be offline, and whether Python's sockets are watched."""

    wanted = 0
    set = False


def switch_off_reports() -> None:
    """Sets what keeps dependencies from reporting; a value that the user gave stays.

    In a process that was started offline, sockets are watched from here on.
    """
    for name, value in REPORTS.items():
        if not os.environ.get(name):
            os.environ[name] = value
    if os.environ.get(OFFLINE) == "1":
        _Guard.wanted += 1
        _watch()


def is_offline() -> bool:
    """Whether nothing may leave this machine."""
    return _Guard.wanted > 0


def is_here(host: str) -> bool:
    """Whether a host is this machine by its loopback address.

    >>> is_here("127.0.0.1"), is_here("localhost"), is_here("::1"), is_here("example.org"), is_here("0.0.0.0")
    (True, True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """While the body runs, no socket of Python reaches beyond loopback, here and in processes that are started.

    ResourceError where one is about to. Nothing happens where it is not `wanted`.
    """
    if not wanted:
        yield
        return
    settings = {OFFLINE: "1", HUB: "1", **({GLOO: "lo"} if sys.platform == "linux" else {})}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    _Guard.wanted += 1
    _watch()
    try:
        yield
    finally:
        _Guard.wanted -= 1
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _watch() -> None:
    """Sets the guard, once: Python offers no way to take one off, so it looks whether it is wanted."""
    if not _Guard.set:
        _Guard.set = True
        sys.addaudithook(_refuse)


def _refuse(event: str, facts: tuple[Any, ...]) -> None:
    if not _Guard.wanted or not event.startswith("socket."):
        return
    host: Any = None
    if event in CONNECTING:
        address = facts[1]
        host = address[0] if isinstance(address, tuple) and address else None  # others are files, as of AF_UNIX
    elif event in ASKING:
        host = facts[0]
    if host is None:
        return
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    if not is_here(name):
        raise ResourceError(
            f"offline: {name or 'any host'} would be spoken to; leave --offline out where that is meant"
        )

"""Requests to a server that answers as a model: retried, bounded, with errors that name address and status."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import threading
from dataclasses import dataclass
from email.message import Message
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from decoct.errors import DataError, PathError, RecipeError, ResourceError

JSON = "application/json"
TENSORS = "application/vnd.safetensors"
FINGERPRINT = "X-Decoct-Fingerprint"
"""Header of each answer: the fingerprint of the weights that made it."""
LONGEST_WAIT = 5.0
TOKENS = "DECOCT_"
"""How the names of the environment variables begin of which a recipe may send the content to a server."""


def token_name(name: str) -> str:
    """`name`, where it may stand as `token`; RecipeError where it names a variable that is not for servers.

    >>> token_name("DECOCT_TOKEN")
    'DECOCT_TOKEN'
    """
    if name and not name.startswith(TOKENS):
        raise RecipeError(
            f"token is {name!r}; allowed: names of environment variables that begin with {TOKENS}, so that no recipe "
            f"can send other secrets to a server. Set {TOKENS}{name} to the same text and name that"
        )
    return name


TokenName = Annotated[str, AfterValidator(token_name)]
"""A setting that names the environment variable with a server's token; empty: none is shown."""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Message
    """By name, however it is written."""
    body: bytes


class Client:
    """A server's address and how to ask it.

    `token`: the name of the environment variable that holds the bearer token, where one is set; it begins with DECOCT_,
    and is sent over https, or over http to this machine itself; `timeout` seconds for one try; `retries` after a failed
    connection, a 429 or a 5xx, waiting 0.1 s, 0.2 s, 0.4 s, at most 5 s between them; `most_bytes` of one answer.
    """

    def __init__(
        self, url: str, *, token: str = "", timeout: float = 60.0, retries: int = 8, most_bytes: int = 1 << 31
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RecipeError(f"url is {url!r}; write http://host:port or https://host")
        self.url, self._parts = url.rstrip("/"), parts
        self._token, self._timeout, self._retries, self._most = token_name(token), timeout, retries, most_bytes
        self._stopped = threading.Event()
        self._open: set[http.client.HTTPConnection] = set()
        self.resent = 0
        """How many requests were sent again so far."""

    def get(self, path: str) -> Reply:
        """GET; the reply has status 200."""
        return self._ask("GET", path, None, JSON)

    def post(self, path: str, body: bytes, kind: str) -> Reply:
        """POST; the reply has status 200."""
        return self._ask("POST", path, body, kind)

    def stop(self) -> None:
        """Ends requests that wait, in whatever thread."""
        self._stopped.set()
        for each in list(self._open):
            sock = each.sock
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, path: str, body: bytes | None, kind: str) -> Reply:
        problem = ""
        for number in range(self._retries + 1):
            if number:
                self.resent += 1
                if self._stopped.wait(min(LONGEST_WAIT, 0.1 * 2 ** (number - 1))):
                    break
            try:
                reply = self._once(method, path, body, kind)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if reply.status == 200:
                return reply
            if reply.status != 429 and reply.status < 500:
                raise refused(self.url + path, reply)
            problem = f"status {reply.status}: {_text(reply)}"
        raise ResourceError(
            f"{self.url}{path} gave no answer in {number + 1} tries, at last {problem}; does the server run?"
        )

    def _once(self, method: str, path: str, body: bytes | None, kind: str) -> Reply:
        secure = self._parts.scheme == "https"
        made = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        assert self._parts.hostname is not None
        connection = made(self._parts.hostname, self._parts.port, timeout=self._timeout)
        headers = {"Content-Type": kind, **self._shown()}
        self._open.add(connection)
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
            answer = connection.getresponse()
            content = answer.read(self._most + 1)
            if len(content) > self._most:
                raise ResourceError(
                    f"{self.url}{path} answered with more than {self._most} bytes; ask for fewer features"
                )
            if answer.headers.get("Content-Length", str(len(content))) != str(len(content)):
                raise http.client.IncompleteRead(content)  # read(most) itself does not mind
            return Reply(answer.status, answer.headers, content)
        finally:
            self._open.discard(connection)
            connection.close()

    def _shown(self) -> dict[str, str]:
        """The header with the token, where there is one."""
        token = os.environ.get(self._token, "") if self._token else ""
        if not token:
            return {}
        if self._parts.scheme != "https" and not _is_here(str(self._parts.hostname)):
            raise RecipeError(
                f"url is {self.url} and the token in {self._token} would travel unencrypted; give an https address, or "
                "reach the server through a tunnel to 127.0.0.1; where it wants no token, write token: ''"
            )
        return {"Authorization": f"Bearer {token}"}


def _is_here(host: str) -> bool:
    """Whether a host is this machine by its loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refused(url: str, reply: Reply) -> Exception:
    """The error for a reply with a status below 500 that is not 200."""
    if reply.status == 401:
        return ResourceError(f"{url} answered with status 401: it wants a token; set the variable that `token` names")
    text = f"{url} answered with status {reply.status}: {_text(reply)}"
    kinds = {"PathError": PathError, "RecipeError": RecipeError, "DataError": DataError}
    return kinds.get(_field(reply, "kind"), ResourceError)(text)


def _text(reply: Reply) -> str:
    return _field(reply, "text") or reply.body[:200].decode(errors="replace")


def _field(reply: Reply, name: str) -> str:
    try:
        found = json.loads(reply.body)
    except ValueError:
        return ""
    return str(found.get(name, "")) if isinstance(found, dict) else ""

"""Requests to a server that answers as a model: retried, bounded, with errors that name address and status."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from email.message import Message
from types import TracebackType
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator

from decoct.artifact import parse_json
from decoct.errors import DataError, PathError, RecipeError, ResourceError
from decoct.network import is_here

JSON = "application/json"
TENSORS = "application/vnd.safetensors"
FINGERPRINT = "X-Decoct-Fingerprint"
"""Header of each answer: the fingerprint of the weights that made it."""
LONGEST_WAIT = 5.0
SLOWEST = 1e5
"""An answer may take `timeout` seconds, and one more for each so many bytes that came."""
TOKENS = "DECOCT_"
"""How the names of the environment variables begin of which a recipe may send the content to a server."""
HOST = "_HOST"
"""What follows such a name in the variable that says to whom its content may be sent."""
PORTS = {"http": 80, "https": 443}


def token_name(name: str) -> str:
    """`name`, where it may stand as `token`; RecipeError where it names a variable that is not for servers.

    >>> token_name("DECOCT_LAB")
    'DECOCT_LAB'
    """
    if name and not name.startswith(TOKENS):
        raise RecipeError(
            f"token is {name!r}; allowed: names of environment variables that begin with {TOKENS}, so that no recipe "
            f"can send other secrets to a server. Set {TOKENS}{name} to the same text and name that"
        )
    return name


TokenName = Annotated[str, AfterValidator(token_name)]
"""A setting that names the environment variable with a server's token; empty: none is shown."""


def secret_for(name: str, scheme: str, host: str, port: int | None) -> str:
    """The token in the environment variable `name`, where its user lets this host have it; empty where none is set.

    To whom a token may be sent stands in the variable NAME_HOST, outside of any recipe: hosts with their ports (those
    of http and https may be left out), separated by commas. RecipeError where this host is not among them.
    """
    token = os.environ.get(name, "") if name else ""
    if not token:
        return ""
    port = port or PORTS[scheme]
    wanted = f"[{host}]" if ":" in host else host
    own = {f"{wanted}:{port}", *([wanted] if port == PORTS[scheme] else [])}
    allowed = {each.strip().lower() for each in os.environ.get(name + HOST, "").split(",")}
    if not own & allowed:
        bound = f"is {os.environ[name + HOST]!r}" if os.environ.get(name + HOST) else "is not set"
        raise RecipeError(
            f"token is {name}, and the recipe would send it to {wanted}:{port}, but {name + HOST}, which says who may "
            f"have it, {bound}. Where that server is the one that gave you the token, set {name + HOST}="
            f"{wanted}:{port}; else take token out of the recipe"
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise RecipeError(f"the token in {name} holds spaces, line ends or letters beyond ASCII; set it again")
    return token


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Message
    """By name, however it is written."""
    body: bytes


class Client:
    """A server's address and how to ask it.

    `token`: the name of the environment variable that holds the bearer token, where one is set; see `secret_for`. It is
    sent over https, or over http to this machine itself, and to no other address: redirections are not followed.
    `timeout` seconds for one try, and one more for each 100 kB of the answer; `retries` after a failed connection, a
    429 or a 5xx, waiting 0.1 s, 0.2 s, 0.4 s, at most 5 s between them; `most_bytes` of one answer.
    """

    def __init__(
        self, url: str, *, token: str = "", timeout: float = 60.0, retries: int = 8, most_bytes: int = 1 << 31
    ) -> None:
        self._parts, self._port = _parsed(url)
        self.url = url.rstrip("/")
        self._token, self._timeout, self._retries, self._most = token_name(token), timeout, retries, most_bytes
        self._stopped = threading.Event()
        self._open: set[socket.socket] = set()
        self._secure: ssl.SSLContext | None = None
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
            _end(each)

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
        host = str(self._parts.hostname)
        connection = http.client.HTTPConnection(host, self._port, timeout=self._timeout)
        headers = {"Content-Type": kind, "Host": self._parts.netloc, **self._shown()}
        plain = socket.create_connection((host, self._port), self._timeout)
        handle = plain.dup()  # by which the connection is ended, while TLS is being agreed upon too
        self._open.add(handle)
        try:
            with _Deadline(handle, self._timeout) as deadline:
                connection.sock = plain
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._parts.scheme == "https":
                    connection.sock = self._context().wrap_socket(plain, server_hostname=host)
                connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
                answer = connection.getresponse()
                content = self._content(answer, path, deadline)
            if answer.headers.get("Content-Length", str(len(content))) != str(len(content)):
                raise http.client.IncompleteRead(content)  # read(most) itself does not mind
            return Reply(answer.status, answer.headers, content)
        finally:
            self._open.discard(handle)
            handle.close()
            connection.close()

    def _content(self, answer: http.client.HTTPResponse, path: str, deadline: _Deadline) -> bytes:
        found = bytearray()
        while some := answer.read1(1 << 20):
            found += some
            deadline.later(len(some) / SLOWEST)
            if len(found) > self._most:
                raise ResourceError(
                    f"{self.url}{path} answered with more than {self._most} bytes; ask for fewer features"
                )
        return bytes(found)

    def _context(self) -> ssl.SSLContext:
        if self._secure is None:
            self._secure = ssl.create_default_context()
        return self._secure

    def _shown(self) -> dict[str, str]:
        """The header with the token, where there is one."""
        token = secret_for(self._token, self._parts.scheme, str(self._parts.hostname), self._parts.port)
        if not token:
            return {}
        if self._parts.scheme != "https" and not is_here(str(self._parts.hostname)):
            raise RecipeError(
                f"url is {self.url} and the token in {self._token} would travel unencrypted; give an https address, or "
                "reach the server through a tunnel to 127.0.0.1; where it wants no token, take token out"
            )
        return {"Authorization": f"Bearer {token}"}


class _Deadline:
    """Ends a connection when its time is over, however slowly or steadily bytes come; then raises TimeoutError."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._end = connection, time.monotonic() + seconds
        self._began, self._over, self._late = time.monotonic(), threading.Event(), False

    def later(self, seconds: float) -> None:
        """Gives it so much more time."""
        self._end += seconds

    def __enter__(self) -> _Deadline:
        self._thread = threading.Thread(target=self._wait, name="decoct-deadline", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._late and (error is None or isinstance(error, OSError | http.client.HTTPException)):
            raise TimeoutError(f"the answer was not whole after {time.monotonic() - self._began:.3g} s") from error

    def _wait(self) -> None:
        while not self._over.wait(max(0.0, self._end - time.monotonic())):
            if time.monotonic() >= self._end:
                self._late = True
                _end(self._connection)
                return


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _parsed(url: str) -> tuple[SplitResult, int]:
    """The parts of an address and its port; RecipeError where it is none that can be asked."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise RecipeError(f"url is {url!r} ({error}); write http://host:port or https://host") from None
    if not (parts.scheme in PORTS and parts.hostname and url.isascii() and url.isprintable() and " " not in url):
        raise RecipeError(f"url is {url!r}; write http://host:port or https://host, in ASCII and without spaces")
    if parts.username is not None or parts.password is not None:
        raise RecipeError(
            f"url is one of {parts.hostname} and names a user or password; a recipe is no place for secrets: "
            "write it without them and give `token`"
        )
    return parts, port


def refused(url: str, reply: Reply) -> Exception:
    """The error for a reply with a status below 500 that is not 200."""
    if reply.status == 401:
        return ResourceError(
            f"{url} answered with status 401: it wants a token; name a variable as `token`, and set it and NAME_HOST"
        )
    text = f"{url} answered with status {reply.status}: {_text(reply)}"
    kinds = {"PathError": PathError, "RecipeError": RecipeError, "DataError": DataError}
    return kinds.get(_field(reply, "kind"), ResourceError)(text)


def _text(reply: Reply) -> str:
    return _field(reply, "text") or reply.body[:200].decode(errors="replace")


def _field(reply: Reply, name: str) -> str:
    try:
        found = parse_json(reply.body, "the answer", error=DataError)
    except DataError:
        return ""
    return str(found.get(name, "")) if isinstance(found, dict) else ""

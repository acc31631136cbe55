"""A server that lets an artifact answer as a teacher.

    GET /v1/teacher   -> JSON: decoct (version), task, side, classes, fingerprint, features, most_bytes
    POST /v1/outputs  safetensors (see `tensors.py`) -> safetensors, header X-Decoct-Fingerprint
    GET /v1/heads/FINGERPRINT -> safetensors: the head of answers with hidden states in the place of logits

Statuses: 400 a body that cannot be read; 401 the bearer token is missing or wrong; 404; 408 a body that comes too
slowly; 411 a body without a length; 413 a body above the limit; 422 the teacher cannot answer this (JSON: kind, text);
503 too many requests at a time.
Nothing that is received is ever run or unpickled.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from decoct.artifact import Artifact, Described, described_by
from decoct.errors import DataError, DecoctError, ForwardFailed, IntegrityError, RecipeError, printable
from decoct.models.http_client import FINGERPRINT, JSON, TENSORS
from decoct.models.remote import TOKEN
from decoct.models.saving import load_model
from decoct.outputs import DENSE, Batch, Needs, Outputs
from decoct.teachers.base import Teacher, for_kind
from decoct.teachers.contract import frozen
from decoct.teachers.remote.heads import Offered
from decoct.teachers.remote.tensors import from_head, from_outputs, to_inputs

MOST_BYTES = 256 << 20
AT_A_TIME = 16
MOST_DIGITS = 20
"""Of a length that a request states."""
HEADS = "/v1/heads/"
PATIENCE, SLOWEST = 60.0, 1e5
"""A body may take so many seconds, and one more for each so many bytes."""
Answer = Callable[[Any, Needs], Outputs]


def serve(
    folder: Path | str, host: str = "127.0.0.1", port: int = 8700, *, token: str = TOKEN, device: str = "cpu"
) -> None:
    """Serves the artifact in `folder` until it is interrupted; prints the address first.

    Where the environment variable `token` is set, a client must show it. Raises IntegrityError at the end if the
    teacher changed.
    """
    with teaching(folder, host, port, token=token, device=device) as server:
        print(printable(f"{folder} teaches at http://{host}:{server.server_port}"), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


@contextmanager
def teaching(
    folder: Path | str,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    token: str = TOKEN,
    device: str = "cpu",
    most_bytes: int = MOST_BYTES,
) -> Iterator[ThreadingHTTPServer]:
    """A server that is bound (port 0: to a free one) and does not serve yet: call `serve_forever`, then `shutdown`."""
    secret = os.environ.get(token, "")
    if host not in ("127.0.0.1", "localhost", "::1") and not secret:
        warnings.warn(f"anybody who reaches {host} may ask this teacher; set {token} to a secret", stacklevel=3)
    with answering(Artifact.load(folder), device) as (info, answer):
        desk = _Desk({**info, "most_bytes": most_bytes}, answer, secret, most_bytes)
        handler = type("Handler", (_Handler,), {"desk": desk})
        with ThreadingHTTPServer((host, port), handler) as server:
            server.daemon_threads = True
            yield server


@contextmanager
def answering(artifact: Artifact, device: str = "cpu") -> Iterator[tuple[dict[str, Any], Answer]]:
    """What is told of an artifact's teacher, and what it says about inputs, under the teacher contract."""
    if not (artifact.folder / "task.json").is_file():
        raise IntegrityError(f"{artifact.folder} holds no task.json, so nobody knows what its teacher takes")
    task: Any = described_by("decoct.tasks", artifact.json("task.json", Described), artifact.folder / "task.json")
    side = str(artifact.meta.get("side", "teacher"))
    reading = task.reading(side)
    info = {
        "decoct": version("decoct"),
        "task": task.plain(),
        "side": side,
        "classes": list(task.plain().get("classes") or ()),
        "fingerprint": artifact.hash,
        "features": [],
    }
    if artifact.kind == "model":
        network = load_model(artifact)
        with frozen(network.module, device) as module:
            info["features"] = [name for name, _ in module.named_modules() if name]

            def answer(inputs: Any, needs: Needs) -> Outputs:
                with torch.no_grad():
                    return reading.forward(network, Batch({side: inputs}).to(device), needs)

            yield info, answer
        return
    from decoct.teachers import CATALOGUE

    kind = cast(Teacher, CATALOGUE.resolve(for_kind(artifact))())
    with kind.open(artifact, reading, DENSE) as predict:
        yield info, lambda inputs, needs: predict(Batch({side: inputs}))


class _Desk:
    """What all requests of a server share; the teacher answers one at a time."""

    def __init__(self, info: dict[str, Any], answer: Answer, secret: str, most_bytes: int) -> None:
        self.info, self.secret, self.most_bytes = info, secret, most_bytes
        self.room = threading.BoundedSemaphore(AT_A_TIME)
        self._answer, self._alone = answer, threading.Lock()
        self._offered = Offered()

    def outputs(self, body: bytes) -> bytes:
        """The answer to the body of a request."""
        inputs, needs = to_inputs(body)
        modules = {path.partition("[")[0].partition("#")[0].partition("@")[0] for path in needs.features}
        if not self.info["features"] and modules:
            raise RecipeError(f"this teacher has no layers to tap, and {', '.join(sorted(modules))} are asked for")
        with self._alone:
            outputs = self._answer(inputs, needs)
            return from_outputs(outputs, self._offered if "factored" in needs.forms else None)

    def head(self, name: str) -> bytes:
        """The head with a fingerprint that an answer named."""
        return from_head(self._offered.head(name))


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    desk: _Desk
    timeout = 60

    def do_GET(self) -> None:
        """GET /v1/teacher, and GET /v1/heads/FINGERPRINT."""
        if not self._known():
            return
        if self.path.startswith(HEADS):
            self._head(self.path.removeprefix(HEADS))
        elif self._found("/v1/teacher"):
            self._reply(200, JSON, json.dumps(self.desk.info).encode())

    def _head(self, name: str) -> None:
        try:
            found = self.desk.head(name)
        except DataError as error:
            self._refuse(404, "DataError", str(error))
        else:
            self._reply(200, TENSORS, found)

    def do_POST(self) -> None:
        """POST /v1/outputs."""
        if not (self._known() and self._found("/v1/outputs") and self._fits()):
            return
        if not self.desk.room.acquire(blocking=False):
            self._refuse(503, "ResourceError", f"{AT_A_TIME} requests are being answered; ask again")
            return
        try:
            body = self._body(int(self.headers["Content-Length"]))
            if body is None:
                self._refuse(408, "ResourceError", "the body of the request came too slowly")
            else:
                self._answer(body)
        finally:
            self.desk.room.release()

    def _body(self, length: int) -> bytes | None:
        """What was sent, up to `length` bytes; None where it does not come in time."""
        end = time.monotonic() + PATIENCE + length / SLOWEST
        found = bytearray()
        while len(found) < length:
            if (left := end - time.monotonic()) <= 0:
                return None
            self.connection.settimeout(min(self.timeout, left))
            try:
                some = self.rfile.read1(min(length - len(found), 1 << 20))
            except TimeoutError:
                return None
            if not some:
                break
            found += some
        self.connection.settimeout(self.timeout)
        return bytes(found)

    def _answer(self, body: bytes) -> None:
        try:
            answer = self.desk.outputs(body)
        except DataError as error:
            self._refuse(400, "DataError", str(error))
        except ForwardFailed as error:
            self._failed(error, type(error.__cause__ or error).__name__)
        except DecoctError as error:
            self._refuse(422, type(error).__name__, str(error))
        except BaseException as error:
            self._failed(error, type(error).__name__)
        else:
            self._reply(200, TENSORS, answer)

    def _failed(self, error: BaseException, kind: str) -> None:
        """Says here what code of others raised, and there that it did: its text may tell of this machine."""
        sys.stderr.write(printable("".join(traceback.format_exception(error))))
        self._refuse(422, kind, f"the teacher failed with {kind}; the server's own output says why")

    def _fits(self) -> bool:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(411, "DataError", "the request does not say how long it is")
        elif len(length) > MOST_DIGITS or int(length) > self.desk.most_bytes:
            shown = f"{length} bytes" if len(length) <= MOST_DIGITS else f"a number of {len(length)} digits"
            text = f"{shown}; at most {self.desk.most_bytes} bytes are taken, so send smaller batches"
            self._refuse(413, "DataError", text)
        else:
            return True
        return False

    def _found(self, path: str) -> bool:
        if self.path == path:
            return True
        self._refuse(404, "DataError", f"no {self.command} {self.path}; GET /v1/teacher and POST /v1/outputs are here")
        return False

    def _known(self) -> bool:
        """Whether the client may ask."""
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.desk.secret or hmac.compare_digest(shown.encode(), self.desk.secret.encode()):
            return True
        self._refuse(401, "ResourceError", "the token is missing or wrong")
        return False

    def _refuse(self, status: int, kind: str, text: str) -> None:
        self._reply(status, JSON, json.dumps({"kind": kind, "text": text}).encode())

    def _reply(self, status: int, kind: str, body: bytes) -> None:
        self.close_connection = True
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header(FINGERPRINT, str(self.desk.info["fingerprint"]))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client is gone

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a line for each batch would fill the terminal."""

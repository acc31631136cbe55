"""Remote: a model that answers behind a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from decoct.artifact import Described, Strict, parse_json
from decoct.errors import DataError, RecipeError
from decoct.models.base import Interface, Model, OutsideModel
from decoct.models.http_client import Client, TokenName

if TYPE_CHECKING:
    from torch import nn

VERSION = "/v1"
TOKEN = "DECOCT_TOKEN"
"""The environment variable in which `decoct teach` finds the token that it asks for."""


class Facts(Strict):
    """What a server says of its teacher."""

    decoct: str
    task: Described
    side: str
    classes: list[str]
    fingerprint: str
    features: list[str]
    most_bytes: int = Field(gt=0)


class Remote(OutsideModel):
    """A model behind a server that `decoct teach` started; it answers as a teacher and cannot be trained.

    `url`: its address, as http://host:port. `token`: the environment variable, DECOCT_NAME, that holds the server's
    token, where it wants one; who may have it stands in DECOCT_NAME_HOST, as host:port; it is sent over https, or over
    http to 127.0.0.1. `timeout` seconds for one try, and one more for each 100 kB of the answer; `retries` after failed
    connections and errors of the server.
    """

    use: ClassVar[str] = "http"
    positional: ClassVar[tuple[str, ...]] = ("url",)
    not_in_key: ClassVar[tuple[str, ...]] = ("url", "token", "timeout", "retries")  # the fingerprint says which weights
    url: str
    token: TokenName = ""
    timeout: float = Field(default=60.0, gt=0)
    retries: int = Field(default=8, ge=0)

    def client(self) -> Client:
        """What asks the server."""
        return Client(self.url, token=self.token, timeout=self.timeout, retries=self.retries)

    def info(self) -> dict[str, Any]:
        """What the server says of its teacher: `decoct` (version), `task` and `side` for which it was trained,
        `classes`, `fingerprint` of its weights, `features` that may be asked for, `most_bytes` of one request."""
        return facts(self.client())

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        raise RecipeError(f"{self.url} is a server, which answers but cannot be trained; use it as a teacher")

    def standalone(self, interface: Interface) -> Model:
        return self

    def fingerprint(self) -> str:
        return str(self.info()["fingerprint"])


def facts(client: Client) -> dict[str, Any]:
    """What the server at the other end says of its teacher; DataError where it is no such server."""
    path = f"{VERSION}/teacher"
    try:
        found: dict[str, Any] = parse_json(client.get(path).body, f"{client.url}{path}", Facts, error=DataError)
    except DataError as error:
        raise DataError(f"{client.url} is no teacher's server: {error}") from None
    return found

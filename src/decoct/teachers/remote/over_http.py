"""HttpTeacher: a teacher behind a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from decoct.capture import EVERY, split_path
from decoct.errors import DataError, PathError, RecipeError, TeacherChanged, did_you_mean
from decoct.models.http_client import FINGERPRINT, TENSORS, Client
from decoct.models.remote import VERSION, Remote, facts
from decoct.outputs import Batch, Dense, Factored, Needs, Outputs, Predictor
from decoct.teachers.base import Reading, Teacher
from decoct.teachers.remote.base import Asking
from decoct.teachers.remote.heads import Fetched
from decoct.teachers.remote.tensors import from_inputs, to_head, to_outputs


class HttpTeacher(Teacher):
    """A teacher behind a server, asked while the student trains.

    `ahead` batches are asked for before the student gets to them, so many at a time. Each answer names the weights that
    made it, and other weights than at the start end the training. The server prepares inputs as its own artifact's task
    says, in its own precision.
    """

    use: ClassVar[str] = "http"
    not_in_key: ClassVar[tuple[str, ...]] = ("ahead",)
    ahead: int = Field(default=4, ge=1)

    def open(
        self,
        subject: Any,
        reading: Reading,
        needs: Needs,
        *,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """An OverHttp while the body runs; `subject` a Remote, or the address as text."""
        if isinstance(subject, str):
            subject = Remote(url=subject)
        if not isinstance(subject, Remote):
            raise RecipeError(f"a teacher over HTTP is {{use: http, url: ...}}, not {type(subject).__name__}")
        if needs.gradient:
            raise RecipeError("a teacher elsewhere answers without gradients, and a term asks for those of its inputs")
        return self._opened(subject.client(), needs, reading)

    @contextmanager
    def _opened(self, client: Client, needs: Needs, reading: Reading) -> Iterator[Predictor]:
        info = facts(client)
        _check(client.url, info, needs)
        teacher = OverHttp(client, info, needs, reading, self.ahead)
        try:
            yield teacher
            if (now := facts(client)["fingerprint"]) != info["fingerprint"]:
                raise changed(client.url, info["fingerprint"], now)
        finally:
            client.stop()
            teacher.end()


class OverHttp(Asking):
    """A teacher whose answers come from a server."""

    def __init__(self, client: Client, info: dict[str, Any], needs: Needs, reading: Reading, room: int) -> None:
        super().__init__(reading.reader, room, room)
        self._client, self._info, self._needs, self._reading = client, info, needs, reading
        self._fetched = Fetched(lambda name: to_head(client.get(f"{VERSION}/heads/{name}").body))

    def ask(self, batch: Batch) -> Outputs:
        body = from_inputs(batch.side(self.side), self._needs)
        if len(body) > self._info["most_bytes"]:
            raise RecipeError(
                f"a batch is {len(body)} bytes and {self._client.url} takes {self._info['most_bytes']}; "
                "give it a smaller batch_size"
            )
        reply = self._client.post(f"{VERSION}/outputs", body, TENSORS)
        self.counts.resent = self._client.resent
        if (made_by := reply.headers.get(FINGERPRINT, "")) != self._info["fingerprint"]:
            raise changed(self._client.url, self._info["fingerprint"], made_by)
        outputs = to_outputs(reply.body, self._fetched)
        self._refuse_others(outputs, len(batch))
        if self.side not in batch.trace or not isinstance(outputs.distribution, Dense):
            return outputs
        logits = outputs.distribution.logits.float().numpy()
        placed = self._reading.from_file({"logits": logits}, batch)  # the server has no trace
        return replace(outputs, distribution=placed.distribution, mask=placed.mask)

    def _refuse_others(self, outputs: Outputs, samples: int) -> None:
        """DataError where the answer is none to what was asked: of other samples, without numbers or features."""
        said = outputs.distribution
        numbers = said.hidden if isinstance(said, Factored) else said.logits if isinstance(said, Dense) else None
        if numbers is not None and not (numbers.is_floating_point() and numbers.ndim > 1 and len(numbers) == samples):
            raise DataError(
                f"{self._client.url} answered {numbers.dtype} of {list(numbers.shape)} for {samples} samples; floating "
                "numbers with a row for each are needed"
            )
        lacking = sorted(path for path in self._needs.features - outputs.features.keys() if path != EVERY)
        if lacking:
            raise DataError(f"{self._client.url} answered without the feature {lacking[0]!r}, which was asked for")


def changed(url: str, before: str, after: str) -> TeacherChanged:
    """The error for a server that answers with other weights than it began with."""
    return TeacherChanged(
        f"the teacher at {url} changed while it taught: its weights were {before[:12]} and are {after[:12]}; its "
        "targets are not those of one model. Start the server with the same artifact again"
    )


def _check(url: str, info: dict[str, Any], needs: Needs) -> None:
    """PathError for a feature that the server's model lacks."""
    modules = {split_path(path).module for path in needs.features if path != EVERY}
    for module in sorted(modules - set(info["features"])):
        raise PathError(f"the teacher at {url} has no module {module!r}; {did_you_mean(module, info['features'])}")

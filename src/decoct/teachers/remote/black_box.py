"""BlackBoxTeacher: a teacher that names classes and says nothing else."""

from __future__ import annotations

import json
import math
import numbers
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoct.artifact import Strict, parse_json
from decoct.errors import DataError, RecipeError, ResourceError, did_you_mean
from decoct.models.http_client import JSON, Client
from decoct.models.own_inputs import copy_of
from decoct.outputs import Batch, Dense, Needs, Outputs, Predictor
from decoct.teachers.base import Reading, Teacher
from decoct.teachers.remote.base import Asking

Rows = Callable[[Batch], list[Any]]
"""The raw samples of a batch: texts, images, rows."""
Labels = Callable[[list[Any]], Sequence[Any]]
"""Raw samples -> for each the name or id of a class, or a text that is one."""


@dataclass(frozen=True)
class BlackBox:
    """What names classes: a function, or a URL that takes `{"inputs": [...]}` and gives `{"labels": [...]}`.

    `rows` gives the raw samples of a batch. `token`: the environment variable with a bearer token for the URL.
    """

    ask: Labels | str
    rows: Rows
    token: str = ""


class _Labels(Strict):
    labels: list[Any]


class BlackBoxTeacher(Teacher):
    """A teacher that gives labels or text only, such as a service.

    The named class gets probability `confidence`, the others share the rest evenly. A text counts as the class whose
    name it is, without regard to case and outer spaces; one that is no class ends the run (`unknown: refuse`), or is
    counted and taken to say that all classes are equally likely (`uniform`), which the student then learns. `ahead`
    batches are asked for before the student gets to them; a failed question (OSError of a function, 5xx of a server) is
    asked again up to `retries` times. `timeout`: seconds for one question. `unknown`: what an answer that is no class
    does, refuse or uniform.
    """

    use: ClassVar[str] = "black_box"
    not_in_key: ClassVar[tuple[str, ...]] = ("retries", "ahead", "timeout")
    confidence: float = Field(default=0.9, gt=0, lt=1)
    retries: int = Field(default=3, ge=0)
    unknown: Literal["refuse", "uniform"] = "refuse"
    ahead: int = Field(default=4, ge=1)
    timeout: float = Field(default=60.0, gt=0)

    def open(
        self,
        subject: Any,
        reading: Reading,
        needs: Needs,
        *,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A Naming while the body runs; `subject` is a BlackBox."""
        if not isinstance(subject, BlackBox):
            raise RecipeError(f"a black box is dc.BlackBox(function or url), not {type(subject).__name__}")
        if needs.features or needs.gradient:
            raise RecipeError("a black box gives classes alone, and a term asks for features or gradients")
        names = reading.names
        if len(names) < 2:
            raise RecipeError(f"a black box names classes, and the task has {len(names)} that have names")
        if self.confidence <= 1 / len(names):
            raise RecipeError(
                f"teacher.confidence is {self.confidence}; above 1/{len(names)}, or the named class is no likelier "
                "than the others"
            )
        return self._opened(subject, names, reading.reader)

    @contextmanager
    def _opened(self, subject: BlackBox, names: tuple[str, ...], side: str) -> Iterator[Predictor]:
        client = None
        if isinstance(subject.ask, str):
            client = Client(subject.ask, token=subject.token, timeout=self.timeout, retries=self.retries)
        teacher = Naming(self, subject, names, side, client)
        try:
            yield teacher
        finally:
            if client is not None:
                client.stop()
            teacher.end()


class Naming(Asking):
    """A teacher that names classes; `unknown` counts the answers that were none."""

    def __init__(
        self, spec: BlackBoxTeacher, subject: BlackBox, names: tuple[str, ...], side: str, client: Client | None
    ) -> None:
        super().__init__(side, spec.ahead, 1 if client is None else spec.ahead)  # a function is called by one thread
        self._spec, self._subject, self._names, self._client = spec, subject, names, client
        self.unknown = 0

    def ask(self, batch: Batch) -> Outputs:
        rows = self._subject.rows(batch)
        names = self._from_function(rows) if self._client is None else self._from_server(rows, self._client)
        if len(names) != len(rows):
            raise DataError(f"the black box answered {len(names)} labels for {len(rows)} samples")
        ids = class_ids(names, self._names)
        missing = [each for each, found in zip(names, ids) if found is None]
        if missing and self._spec.unknown == "refuse":
            raise DataError(
                f"the black box answered {str(missing[0])[:80]!r}, which is no class; "
                f"{did_you_mean(str(missing[0]), self._names)} (unknown: uniform takes all classes as equally likely)"
            )
        self.unknown += len(missing)
        return Outputs(Dense(named_logits(ids, len(self._names), self._spec.confidence)))

    def _from_function(self, rows: list[Any]) -> list[Any]:
        assert callable(self._subject.ask)
        for number in range(self._spec.retries + 1):
            try:
                return list(self._subject.ask(copy_of(rows)))  # these are views of the data themselves
            except OSError as error:
                if number == self._spec.retries:
                    raise ResourceError(f"the black box failed {number + 1} times, at last: {error}") from error
                self.counts.resent += 1
                time.sleep(min(5.0, 0.1 * 2**number))
        raise AssertionError("unreachable")

    def _from_server(self, rows: list[Any], client: Client) -> list[Any]:
        try:
            body = json.dumps({"inputs": [_as_json(each) for each in rows]}, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise RecipeError(f"these samples cannot be written as JSON ({error}); give a function") from None
        reply = client.post("", body, JSON)
        self.counts.resent = client.resent
        try:
            labels: list[Any] = parse_json(reply.body, client.url, _Labels, error=DataError)["labels"]
        except DataError as error:
            raise DataError(f'{client.url} answered no {{"labels": [...]}} but {reply.body[:80]!r} ({error})') from None
        return labels


def class_ids(labels: Sequence[Any], names: Sequence[str]) -> list[int | None]:
    """The class that each label means, None where it is none.

    >>> class_ids(["Cat", " dog\\n", 0, "cow", 7], ["cat", "dog"])
    [0, 1, 0, None, None]
    """
    exact = {name: number for number, name in reversed(list(enumerate(names)))}
    folded = {name.casefold(): number for number, name in reversed(list(enumerate(names)))}

    def one(label: Any) -> int | None:
        if isinstance(label, str):
            return exact.get(label, folded.get(label.strip().casefold()))
        if isinstance(label, numbers.Integral) and not isinstance(label, bool):
            return int(label) if 0 <= int(label) < len(names) else None
        return None

    return [one(each) for each in labels]


def named_logits(ids: Sequence[int | None], classes: int, confidence: float) -> Tensor:
    """Log-probabilities `[B, classes]`: `confidence` on the named class, the rest spread evenly; 0 everywhere for None.

    >>> named_logits([1, None], 3, 0.8).softmax(-1)
    tensor([[0.1000, 0.8000, 0.1000],
            [0.3333, 0.3333, 0.3333]])
    """
    logits = torch.zeros(len(ids), classes)
    for row, found in enumerate(ids):
        if found is not None:
            logits[row] = math.log((1 - confidence) / (classes - 1))
            logits[row, found] = math.log(confidence)
    return logits


def _as_json(value: Any) -> Any:
    """Arrays and tensors as nested lists."""
    import numpy as np

    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value

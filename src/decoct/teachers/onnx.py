"""OnnxTeacher: an ONNX file that answers as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from decoct.artifact import Artifact, sha256
from decoct.errors import IntegrityError, RecipeError, TeacherChanged, did_you_mean
from decoct.models.onnx_file import FileSession, files_of, open_session
from decoct.outputs import Batch, Needs, Outputs, Predictor, device_of
from decoct.teachers.base import Reading, Teacher

FILE = "model.onnx"


class OnnxTeacher(Teacher):
    """An exported artifact, or any ONNX file, under the teacher contract; it answers on the CPU.

    `threads` inside an operator (None: as many as torch uses); `output`: the output to listen to where the file has
    several; `preprocessed`: the file takes what a model takes, so the task's preprocessing runs before it (an exported
    artifact holds its own).
    """

    use: ClassVar[str] = "onnx"
    threads: int | None = Field(default=None, ge=1)
    output: str | None = None
    preprocessed: bool = False

    def open(
        self,
        subject: Any,
        reading: Reading,
        needs: Needs,
        *,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> AbstractContextManager[Predictor]:
        """A predictor while the body runs; `subject` is an Artifact with a model.onnx, or the path of a file."""
        refuse_needs(needs, self.use)
        return self._predictor(file_of(subject), reading)

    @contextmanager
    def _predictor(self, path: Path, reading: Reading) -> Iterator[Predictor]:
        with unchanged(path):
            session = open_session(path, threads=self.threads or torch.get_num_threads())
            answers = file_predictor(session, reading, output=self.output, preprocessed=self.preprocessed)
            yield _of_logits(answers, path, reading)


def _of_logits(answers: Predictor, path: Path, reading: Reading) -> Predictor:
    """The same answers; RecipeError where the first are probabilities, of which the softmax would be taken again."""
    expected = [port for port in reading.outputs.values() if port.kind == "logits"]
    seen = not expected

    def predict(batch: Batch) -> Outputs:
        nonlocal seen
        found = answers(batch)
        if not seen and found.logits is not None:
            seen = True
            if are_probabilities(found.logits):
                raise RecipeError(
                    f"{path} answers with probabilities (no number below 0, and the classes of a sample sum to 1), and "
                    "a teacher's logits are expected: export it without its last softmax (skl2onnx: "
                    "options={id(model): {'raw_scores': True}}), or name another output as teacher.output"
                )
        return found

    return predict


def are_probabilities(logits: torch.Tensor) -> bool:
    """Whether what should be logits `[*B, C]` are probabilities, by their sums.

    >>> are_probabilities(torch.tensor([[0.25, 0.75], [0.5, 0.5]])), are_probabilities(torch.tensor([[-1.0, 2.0]]))
    (True, False)
    """
    if logits.shape[-1] < 2 or not logits.numel():
        return False
    return bool((logits >= 0).all()) and bool(((logits.double().sum(-1) - 1).abs() < 1e-4).all())


def file_predictor(
    session: FileSession, reading: Reading, *, output: str | None = None, preprocessed: bool = False
) -> Predictor:
    """What a file says about a batch, as Outputs on the batch's device.

    The inputs come from `reading.feed`, of several those that the file takes; where file and task have one input or one
    output each, its name does not matter. Numbers in their own units are brought to the scale of logits. RecipeError
    where names or types do not fit.
    """
    names = _outputs(session, output, list(reading.outputs))
    preprocessing = reading.preprocessing().eval() if preprocessed else None

    def predict(batch: Batch) -> Outputs:
        feed = _read(session, reading, batch)
        if preprocessing is not None:
            with torch.no_grad():
                prepared = preprocessing(reading.of(batch.to("cpu")))
            feed = {next(iter(feed)): prepared.numpy()}
        answers = session(_named(session, feed))
        found = reading.from_file({own: answers[name] for own, name in zip(reading.outputs, names)}, batch)
        return found.to(device_of(reading.of(batch)))

    return predict


def file_of(subject: Any) -> Path:
    """The ONNX file of an artifact, or a path."""
    if isinstance(subject, Artifact):
        return subject.file(FILE)
    if isinstance(subject, str | Path):
        return Path(subject)
    raise RecipeError(f"an ONNX teacher is an exported artifact or the path of a file, not {type(subject).__name__}")


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """TeacherChanged if the file, or its external data, differs when the body ends."""
    if not path.is_file():
        raise IntegrityError(f"{path} is missing; give the path of an ONNX file")
    files = files_of(path)
    before = [sha256(each) for each in files]
    yield
    if [sha256(each) if each.is_file() else "" for each in files] != before:
        raise TeacherChanged(
            f"the teacher's file {path} changed while it taught; its targets are not those of one model"
        )


def refuse_needs(needs: Needs, use: str) -> None:
    """RecipeError where a term asks for more than outputs."""
    if needs.features:
        raise RecipeError(
            f"teacher {use}: a file has no modules to tap, and a term asks for {', '.join(sorted(needs.features))}; "
            "use a torch model as the teacher, or a term on logits"
        )
    if needs.gradient:
        raise RecipeError(f"teacher {use}: a file gives no gradients, and a term asks for those of its inputs")


def _outputs(session: FileSession, asked: str | None, expected: list[str]) -> list[str]:
    """The file's outputs in the order of those expected."""
    names = [port.name for port in session.outputs]
    if asked is not None:
        if asked not in names:
            raise RecipeError(f"teacher.output: {asked!r} is no output of the file; {did_you_mean(asked, names)}")
        return [asked]
    if len(names) == len(expected) == 1:
        return names
    if set(expected) <= set(names):
        return expected
    raise RecipeError(f"the file has outputs {', '.join(names)}; say which one answers by `output`")


def _read(session: FileSession, reading: Reading, batch: Batch) -> Mapping[str, np.ndarray]:
    """What the file takes of a batch: where inputs have names, those of the file; a student's further ones are not its
    own."""
    inputs, names = reading.of(batch), [port.name for port in session.inputs]
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        return {name: inputs[name].cpu().numpy() for name in names}
    return reading.feed(batch)


def _named(session: FileSession, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    ports = {port.name: port for port in session.inputs}
    if len(ports) == 1 and len(feed) == 1:
        feed = {next(iter(ports)): next(iter(feed.values()))}
    if set(ports) != set(feed):
        raise RecipeError(f"the file takes {', '.join(ports)}, the task gives {', '.join(feed)}")
    for name, value in feed.items():
        given = {"float32": "float", "float64": "double"}.get(value.dtype.name, value.dtype.name)
        if given != ports[name].type:
            raise RecipeError(
                f"the file takes {name} as {ports[name].type}, the task gives {given}; "
                "a file without preprocessing needs `preprocessed: true`"
            )
    return dict(feed)

"""Labelling, the settings of the step that writes what a teacher says about every sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from decoct.data.views import ViewsSetting
from decoct.errors import RecipeError
from decoct.spec import Choice
from decoct.steps.base import Step, StepProblem
from decoct.store.codecs.base import Codec
from decoct.store.codecs.dense import DenseCodec
from decoct.tasks.mixing.base import Mixing
from decoct.teachers.base import Teacher
from decoct.teachers.combining import Combination

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer


class Labelling(Step):
    """How a teacher is asked about every sample, and how its answers are kept.

    `augment`: training samples are varied as the task says. `batch_size`: samples a batch. `precision`: bf16 or fp16
    compute the teacher's answers in half precision where that is safe. `teachers`: how a teacher answers, by role, as
    `{teacher: {use: onnx}}`.
    """

    gives: ClassVar[str] = "store"
    not_in_key: ClassVar[tuple[str, ...]] = ("workers", "threads", "ray")
    keyed_with: ClassVar[Mapping[str, str]] = {"labels": "mix", "features_dtype": "features"}
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "teacher": ("model", "estimator", "exported", "spec"),
        "*": ("model", "estimator", "exported", "spec"),
    }

    keep: Annotated[Codec, Choice("decoct.store.codecs")] = DenseCodec()
    features: tuple[str, ...] = ()
    features_dtype: Literal["float16", "float32"] = "float16"
    splits: tuple[str, ...] = Field(default=("train",), min_length=1)
    views: ViewsSetting | None = None
    augment: bool = True
    mix: Annotated[Mixing, Choice("decoct.tasks.mixing")] | None = None
    labels: int | None = Field(default=None, ge=1)
    teachers: dict[str, Annotated[Teacher, Choice("decoct.teachers")]] = {}
    combine: Annotated[Combination, Choice("decoct.teachers.combinations")] | None = None
    folds: int | None = Field(default=None, ge=1, exclude_if=lambda value: value is None)
    batch_size: int = Field(default=128, ge=2, le=1 << 24)
    shard: int = Field(default=8192, ge=2, le=1 << 24)
    precision: Literal["no", "bf16", "fp16"] | None = None
    workers: int = Field(default=1, ge=1, le=1024)
    threads: int | None = Field(default=None, ge=1, le=1024)
    ray: str | None = None

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """A codec, a mixture or a combination of the other kind of answers."""
        if answer.numbers:
            try:
                answer.codec(self.keep)
            except RecipeError as error:
                yield ("keep",), str(error), self.keep.use
            if self.mix is not None:
                message = f"mix is {self.mix.use}, which mixes images and their classes, and the task predicts numbers"
                yield ("mix",), f"{message}; leave it out", self.mix.use
        combined = None if self.combine is None else self.combine.problem_with(distribution=answer.distribution)
        if combined is not None:
            yield ("combine",), combined, None

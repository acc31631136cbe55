"""Learning, the settings of every step that trains by descent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from decoct.data.views import ViewsSetting
from decoct.objectives.answers import for_numbers, problem_with
from decoct.objectives.base import Objective
from decoct.objectives.sources import objectives_in
from decoct.spec import Choice
from decoct.steps.base import TRAIN, Step, StepProblem
from decoct.tasks.mixing.base import Mixing
from decoct.training.budget import Budget
from decoct.training.optimizers import AdamW, Optimizer
from decoct.training.schedules import Cosine
from decoct.training.stopping import Stop

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer

DEFAULT_OPTIMIZER = AdamW(lr=Cosine(start=2e-3, end=0.0, warmup=0.05))


class Learning(Step):
    """The settings of every step that trains by descent.

    `budget`: how long to train, in one unit; `batch_size` samples a batch, `accumulate` batches an optimizer step;
    `select` keeps the weights that were best on the validation split, or the last; `side` is whose preprocessing the
    model gets; `labels`: how many training samples keep their label in this step, drawn evenly over the classes; `mix`:
    how two images become one view, the same for both models, as `{use: mixup, alpha: 0.4}`; `teacher_views`: over how
    many augmented views of a sample the teacher's probabilities are averaged (the student sees the first); `views`:
    each sample comes in one of so many fixed augmented views in place of a new one each epoch (a stored teacher says
    which); `stop` ends training before the budget does, as {patience: 5}, by a score on the validation split.
    `sharding`: whether several processes spread the student's weights and optimizer state among them (fsdp).
    The input "train", samples that another step made, stands for the training split. `optimizer`: what follows the
    gradient, and at which learning rate. `max_grad_norm`: longer gradients are scaled to this norm (None: none are).
    `augment`: training samples are varied as the task says. `precision`: bf16 or fp16 compute in half precision where
    that is safe. `log_every`: optimizer steps between two lines of the log. `checkpoint_seconds`: seconds between two
    checkpoints, from which a stopped run continues.
    """

    not_in_key: ClassVar[tuple[str, ...]] = (*Step.not_in_key, "sharding")
    optional: ClassVar[Mapping[str, tuple[str, ...]]] = {TRAIN: ("data",)}
    learns: ClassVar[bool] = True
    everywhere: ClassVar[bool] = True
    rehearsed: ClassVar[bool] = True
    """Whether `check` can run its objective between the model and the other inputs as they are."""
    draws_sources: ClassVar[bool] = False
    """Whether it draws batches of further sources beside those of the data, where its objective reads them."""

    budget: Budget = Budget(epochs=10)
    optimizer: Annotated[Optimizer, Choice("decoct.training.optimizers")] = DEFAULT_OPTIMIZER
    batch_size: int = Field(default=128, ge=1, le=1 << 24)
    accumulate: int = Field(default=1, ge=1, le=1 << 24)
    max_grad_norm: float | None = Field(default=None, gt=0)
    select: Literal["best", "last"] = "best"
    stop: Stop | None = Field(default=None, exclude_if=lambda value: value is None)
    side: str = "student"
    augment: bool = True
    labels: int | None = Field(default=None, ge=1)
    mix: Annotated[Mixing, Choice("decoct.tasks.mixing")] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    teacher_views: int = Field(default=1, ge=1, le=65_536, exclude_if=lambda value: value == 1)
    views: ViewsSetting | None = Field(default=None, exclude_if=lambda value: value is None)
    precision: Literal["no", "bf16", "fp16"] | None = None
    log_every: int = Field(default=10, ge=1)
    checkpoint_seconds: float = Field(default=30.0, gt=0)
    sharding: Literal["none", "fsdp"] = Field(default="none", exclude_if=lambda value: value == "none")

    def for_answer(self, answer: Answer) -> Step:
        """The same step; of predicted numbers its default objective has `regression_kd` in the place of `kd`."""
        if not answer.numbers:
            return self
        found: dict[str, Objective] = {}
        for name, field in type(self).model_fields.items():
            before = field.get_default()
            if isinstance(before, Objective) and name not in self.model_fields_set:
                after = for_numbers(before)
                found |= {name: after} if after != before else {}
        return self.replace(**found) if found else self

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """Terms, and labels counted by class, that do not suit."""
        for path, each in objectives_in(self):
            message = problem_with(each, answer)
            if message is not None:
                yield path, message, each.use
        if self.stop is not None and self.stop.metric not in (None, *answer.metrics):
            message = f"{self.stop.metric!r} is no score of this task; allowed: {', '.join(answer.metrics)}"
            yield ("stop", "metric"), message, self.stop.metric
        if self.labels is not None and answer.scaled:
            message = (
                f"labels is {self.labels} and the task is regression, whose scale comes from every labelled sample of "
                f"the data; leave it out of the step and give data.labels: {self.labels}"
            )
            yield ("labels",), message, self.labels
        if self.mix is not None and answer.numbers:
            message = f"mix is {self.mix.use}, which mixes images and their classes, and the task predicts numbers"
            yield ("mix",), f"{message}; leave it out", self.mix.use

    def seed_name(self) -> str:
        """The model's name: two steps that train one model start from the same weights and see the same order."""
        return self.inputs.get("model", self.name)

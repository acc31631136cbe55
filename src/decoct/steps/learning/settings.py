"""Learning, the settings of every step that trains by descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from decoct.data.views import ViewsSetting
from decoct.spec import Choice
from decoct.steps.base import TRAIN, Step
from decoct.tasks.mixing.base import Mixing
from decoct.training.budget import Budget
from decoct.training.optimizers import AdamW, Optimizer
from decoct.training.schedules import Cosine

DEFAULT_OPTIMIZER = AdamW(lr=Cosine(start=2e-3, end=0.0, warmup=0.05))


class Learning(Step):
    """The settings of every step that trains by descent.

    `budget` in one unit; `batch_size` samples a batch, `accumulate` batches an optimizer step; `select` keeps the
    weights that were best on the validation split, or the last; `side` is whose preprocessing the model gets;
    `labels`: how many training samples keep their label in this step, drawn evenly over the classes; `mix`: how two
    images become one view, the same for both models, as `{use: mixup, alpha: 0.4}`; `teacher_views`: over how many
    augmented views of a sample the teacher's probabilities are averaged (the student sees the first); `views`: each
    sample comes in one of so many fixed augmented views in place of a new one each epoch (a stored teacher says which);
    `sharding`: whether several processes spread the student's weights and optimizer state among them (fsdp). The input
    "train", samples that another step made, stands for the training split.
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

    def seed_name(self) -> str:
        """The model's name: two steps that train one model start from the same weights and see the same order."""
        return self.inputs.get("model", self.name)

"""Updates: `descend`, the usual optimizer step, and Descent, the update of one student under its teachers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from decoct.data.parts import Padding
from decoct.errors import RecipeError
from decoct.outputs import Batch, Outputs, Predictor
from decoct.training.base import ManagedUpdate
from decoct.training.clock import Clock
from decoct.training.engine import Engine
from decoct.training.guards import finite
from decoct.training.schedules import Schedule, at

__all__ = ["Criterion", "Descent", "Engine", "Windowed", "descend", "set_lr", "take_step"]

Items = Mapping[str, Tensor | int]
Losses = tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]]
RESERVED = ("loss", "finite")
SAMPLES = "~samples"
"""The name under which samples are counted beside the items of terms."""
Measure = Callable[[Outputs, Mapping[str, Outputs], Batch], Mapping[str, Tensor]]
"""Numbers for the log, from what the student and each teacher said about a batch; means over it."""


class Criterion(Protocol):
    """The sum of weighted terms. `shares`: what part of each term's items in the window lies in this batch."""

    @property
    def splittable(self) -> bool:
        """Whether a window may be split into batches."""

    def items(self, batch: Batch) -> Items:
        """How many items each term averages over; 0 of a Padding."""

    def weights(self, clock: Clock) -> dict[str, float]:
        """The weight of each term now."""

    def __call__(
        self,
        student: Outputs,
        teachers: Mapping[str, Outputs],
        batch: Batch,
        clock: Clock,
        shares: Mapping[str, Tensor | float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and each term without weight and share."""


def descend(
    loss: Tensor, optimizer: torch.optim.Optimizer, engine: Engine | None = None, *, max_grad_norm: float | None = None
) -> dict[str, Tensor]:
    """One step down: gradients set to None, backward, clipping, check, optimizer step. Returns what is logged.

    Several processes: `loss` is this process's part of a sum, the whole is logged. Raises NonFinite before the step on
    the CPU.

    >>> weight = torch.nn.Parameter(torch.tensor(1.0))
    >>> _ = descend(weight**2, torch.optim.SGD([weight], lr=0.25))
    >>> weight.item()
    0.5
    """
    forget_gradients(optimizer)
    if engine is None:
        loss.backward()
    else:
        engine.backward(loss)
        if engine.processes > 1:
            loss = engine.sum_gradients(learned(optimizer), {"loss": loss})["loss"]
    return take_step(loss, optimizer, engine, max_grad_norm=max_grad_norm)


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Sets all gradients to None: `zero_grad` without its marks for profilers, which take twenty times as long."""
    for group in optimizer.param_groups:
        for each in group["params"]:
            each.grad = None


def learned(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of an optimizer that take gradients."""
    return [each for group in optimizer.param_groups for each in group["params"] if each.requires_grad]


def take_step(
    loss: Tensor, optimizer: torch.optim.Optimizer, engine: Engine | None = None, *, max_grad_norm: float | None = None
) -> dict[str, Tensor]:
    """The part of `descend` after backward and sums over processes; `loss` is the whole window's, for check and log."""
    scaler = None if engine is None else engine.scaler
    if scaler is not None and max_grad_norm is not None:
        scaler.unscale_(optimizer)
    gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    checked = gradients if engine is None else engine.checked(gradients)
    flag = finite(loss, [] if scaler is not None else checked)
    if max_grad_norm is not None and engine is not None and engine.sharded:
        engine.clip(gradients, max_grad_norm)
    elif max_grad_norm is not None:
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        clip_grads_with_norm_(parameters, max_grad_norm, get_total_norm(gradients))
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    logged = {"loss": loss.detach()}
    if flag is not None:
        logged["finite"] = flag
    return logged


def set_lr(optimizer: torch.optim.Optimizer, lr: float | Schedule | None, clock: Clock) -> None:
    """Gives all groups the learning rate of this moment; None leaves them as they are."""
    if lr is not None:
        now = at(lr, clock)
        for group in optimizer.param_groups:
            group["lr"] = now


class Windowed(ManagedUpdate):
    """An update by the losses of a window's batches; what they are is said by who derives from it.

    Loss of a window = Σ_batches mean · items / Σ_window,processes items, term by term, so that gradients do not depend
    on how samples are split into batches. Terms that relate samples to each other cannot be split: RecipeError.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        engine: Engine | None = None,
        *,
        max_grad_norm: float | None = None,
        lr: float | Schedule | None = None,
    ) -> None:
        self.optimizer, self.max_grad_norm, self.lr = optimizer, max_grad_norm, lr
        self.engine = engine or Engine("cpu")

    @property
    @abstractmethod
    def splittable(self) -> bool:
        """Whether a window may be split into batches."""

    @abstractmethod
    def items(self, batch: Batch) -> Items:
        """How many items each term averages over; 0 of a Padding, on which it is run to no account."""

    @abstractmethod
    def weights(self, clock: Clock) -> dict[str, float]:
        """The weight of each term now."""

    @abstractmethod
    def losses(self, batch: Batch, clock: Clock, shares: Mapping[str, Tensor | float] | None) -> Losses:
        """The total of a batch, each term without weight and share, and further numbers for the log."""

    def __call__(self, window: Sequence[Batch], clock: Clock) -> dict[str, Tensor]:
        """One optimizer step over the batches of a window."""
        set_lr(self.optimizer, self.lr, clock)
        if len(window) == 1 and self.engine.processes == 1:
            total, terms, measured = self.losses(self.engine.move(window[0]), clock, None)
            return {
                **measured,
                **terms,
                **descend(total, self.optimizer, self.engine, max_grad_norm=self.max_grad_norm),
            }
        return self._split(window, clock)

    def _split(self, window: Sequence[Batch], clock: Clock) -> dict[str, Tensor]:
        engine = self.engine
        if not self.splittable:
            raise RecipeError(
                f"accumulate is {len(window)} and processes {engine.processes}: a term of this objective relates the "
                "samples of a batch to each other, or counts what only a forward pass shows, so a batch cannot be "
                f"split; {_whole(engine)}, or drop the term"
            )
        counts = [_counts(self.items(batch), batch) for batch in window]
        batches = [engine.move(batch) for batch in window]
        totals = engine.totals(counts)
        forget_gradients(self.optimizer)
        logged: dict[str, Tensor] = {}
        for batch, items in zip(batches, counts):
            shares = {name: _share(items[name], totals[name]) for name in totals}
            with engine.whole_batch(batch):
                total, terms, measured = self.losses(batch, clock, shares)
            engine.backward(total)
            shown = {k: v * shares[SAMPLES] for k, v in measured.items()}
            shown |= {k: v.detach() * shares[k] for k, v in terms.items()}
            for name, term in {**shown, "loss": total.detach()}.items():
                logged[name] = logged[name] + term if name in logged else term
        logged = engine.sum_gradients(learned(self.optimizer), logged)
        loss = logged.pop("loss")
        return {**logged, **take_step(loss, self.optimizer, engine, max_grad_norm=self.max_grad_norm)}

    def settings(self, clock: Clock) -> dict[str, Any]:
        """Weights of the terms and learning rate, for the log."""
        lr = self.optimizer.param_groups[0]["lr"] if self.lr is None else at(self.lr, clock)
        return {"weights": self.weights(clock), "lr": float(lr)}

    def state_dict(self) -> dict[str, Any]:
        """The loss scale of fp16; models, criteria and the optimizer are parts of the State."""
        return self.engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a loss scale."""
        self.engine.load_state_dict(state)


class Descent(Windowed):
    """Teachers say, the student says, the criterion compares, the optimizer steps.

    `forward` runs the student; `teachers` are opened under their contract; `criterion` joins the terms; the optimizer
    has the student's and the criterion's parameters; `lr` a number or schedule, None for what the optimizer has;
    `measure` gives further numbers for the log, from what student and teachers said.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Outputs],
        teachers: Mapping[str, Predictor],
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        engine: Engine | None = None,
        *,
        max_grad_norm: float | None = None,
        lr: float | Schedule | None = None,
        measure: Measure | None = None,
    ) -> None:
        super().__init__(optimizer, engine, max_grad_norm=max_grad_norm, lr=lr)
        self.forward, self.teachers, self.criterion, self.measure = forward, teachers, criterion, measure
        for name in criterion.weights(Clock()):
            if name in RESERVED:
                raise RecipeError(f"a term is called {name!r}, which the log keeps for itself; give it another `name`")

    @property
    def splittable(self) -> bool:
        return self.criterion.splittable

    def predictors(self) -> Mapping[str, Predictor]:
        """The student and the teachers, as they are asked on batches of the loop."""

        def moved(model: Predictor) -> Predictor:
            return lambda batch: model(self.engine.move(batch))

        return {name: moved(each) for name, each in {"student": self.forward, **self.teachers}.items()}

    def items(self, batch: Batch) -> Items:
        return self.criterion.items(batch)

    def weights(self, clock: Clock) -> dict[str, float]:
        return self.criterion.weights(clock)

    def losses(self, batch: Batch, clock: Clock, shares: Mapping[str, Tensor | float] | None) -> Losses:
        teacher_outputs = {name: teacher(batch) for name, teacher in self.teachers.items()}
        if self.engine.precision == "no":
            student = self.forward(batch)
        else:
            with self.engine.autocast():
                student = self.forward(batch)
        total, terms = self.criterion(student, teacher_outputs, batch, clock, shares)
        if self.measure is None:
            return total, terms, {}
        with torch.no_grad():
            return total, terms, self.measure(student, teacher_outputs, batch)


def _counts(items: Items, batch: Batch) -> dict[str, Tensor | float]:
    """Items of each term, and samples (none of a Padding). Tensors of an accelerator are not read, so nothing waits."""
    counts = {name: each.double() if _away(each) else float(each) for name, each in items.items()}
    return {**counts, SAMPLES: 0.0 if isinstance(batch, Padding) else float(len(batch))}


def _away(value: Tensor | int) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _whole(engine: Engine) -> str:
    return "set accumulate to 1" if engine.processes == 1 else "train in one process with accumulate 1"


def _share(items: Tensor | float, total: Tensor | float) -> Tensor | float:
    if isinstance(total, Tensor):
        return items / total.clamp(min=1)
    return items / total if total else 0.0

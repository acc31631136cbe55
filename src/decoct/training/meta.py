"""Meta: weights of terms, and temperatures, that follow the held-out loss of a student one step ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from decoct.data.sources import HELD_OUT
from decoct.errors import RecipeError
from decoct.outputs import Batch, Outputs, Predictor
from decoct.training.base import ManagedUpdate
from decoct.training.clock import Clock
from decoct.training.engine import Engine
from decoct.training.schedules import Schedule, at
from decoct.training.updates import Criterion, descend, set_lr


class Answering(nn.Module):
    """A model and how it answers a batch, as one module, so that it can be called with other weights."""

    def __init__(self, model: nn.Module, answer: Callable[[nn.Module, Batch], Outputs]) -> None:
        super().__init__()
        self.model, self.answer = model, answer

    def forward(self, batch: Batch) -> Outputs:
        return self.answer(self.model, batch)


class Multipliers(nn.Module):
    """A positive factor exp(a) for each term, 1 at first."""

    def __init__(self, labels: Sequence[str], *, learned: bool = True) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.a = nn.Parameter(torch.zeros(len(labels)), requires_grad=learned)

    def forward(self) -> dict[str, Tensor]:
        return dict(zip(self.labels, self.a.exp().unbind()))


class Meta(ManagedUpdate):
    """One step: the student looks one step of gradient descent ahead, its held-out loss there moves the multipliers
    (and `further` parameters of the criterion), and then the student takes its real step under the new ones.

    θ'(φ) = θ − η ∇_θ Σ_k exp(a_k) w_k L_k(θ), φ ← φ − step of ∇_φ L_held_out(θ'(φ)), through the inner gradient. η is
    the student's learning rate now; the inner step is plain descent whatever the optimizer. Held-out samples are
    `batch.also`. Running statistics are those of the real step alone. A window is one batch in one process.

    Ren et al. 2018, arXiv 1803.09050, section 3.3, with terms in the place of samples.
    """

    def __init__(
        self,
        student: Answering,
        teachers: Mapping[str, Predictor],
        criterion: Criterion,
        multipliers: Multipliers,
        held_out_loss: Callable[[Outputs, Batch], Tensor],
        optimizer: torch.optim.Optimizer,
        meta_optimizer: torch.optim.Optimizer,
        engine: Engine | None = None,
        *,
        max_grad_norm: float | None = None,
        lr: float | Schedule | None = None,
    ) -> None:
        self.student, self.teachers, self.criterion = student, teachers, criterion
        self.multipliers, self.held_out_loss = multipliers, held_out_loss
        self.optimizer, self.meta_optimizer = optimizer, meta_optimizer
        self.engine = engine or Engine("cpu")
        self.max_grad_norm, self.lr = max_grad_norm, lr
        groups = meta_optimizer.param_groups
        self.learned = [each for group in groups for each in group["params"] if each.requires_grad]

    def __call__(self, window: Sequence[Batch], clock: Clock) -> dict[str, Tensor]:
        if len(window) != 1 or self.engine.processes != 1:
            raise RecipeError("meta-learning looks ahead from one batch: set accumulate to 1 and run one process")
        batch = self.engine.move(window[0])
        set_lr(self.optimizer, self.lr, clock)
        teacher_outputs = {name: teacher(batch) for name, teacher in self.teachers.items()}
        ahead = self._look_ahead(batch, teacher_outputs, clock)
        with self.engine.autocast():
            outputs = self.student(batch)
        factors = {name: each.detach() for name, each in self.multipliers().items()}
        total, terms = self.criterion(outputs, teacher_outputs, batch, clock, factors)
        logged = descend(total, self.optimizer, self.engine, max_grad_norm=self.max_grad_norm)
        return {"held_out": ahead, **terms, **logged}

    def _look_ahead(self, batch: Batch, teacher_outputs: Mapping[str, Outputs], clock: Clock) -> Tensor:
        """Moves what is learned; returns the held-out loss one step ahead."""
        loss = self.held_out(batch, teacher_outputs, clock, self._rate())
        gradients = torch.autograd.grad(loss, self.learned, allow_unused=True)
        for parameter, gradient in zip(self.learned, gradients):
            parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad()
        return loss.detach()

    def held_out(self, batch: Batch, teacher_outputs: Mapping[str, Outputs], clock: Clock, rate: float) -> Tensor:
        """The held-out loss after one step of plain descent at this rate, as a function of what is learned."""
        assert HELD_OUT in batch.also, "meta-learning needs held-out samples beside each batch"
        weights = {name: each for name, each in self.student.named_parameters() if each.requires_grad}
        with self.engine.autocast():
            outputs = functional_call(self.student, {**weights, **self._buffers()}, (batch,))
        total, _ = self.criterion(outputs, teacher_outputs, batch, clock, self.multipliers())
        steps = torch.autograd.grad(total, list(weights.values()), create_graph=True, allow_unused=True)
        moved = {
            name: weight if step is None else weight - rate * step
            for (name, weight), step in zip(weights.items(), steps)
        }
        with self.engine.autocast():
            ahead = functional_call(self.student, {**moved, **self._buffers()}, (batch.also[HELD_OUT],))
        return self.held_out_loss(ahead, batch.also[HELD_OUT])

    def _buffers(self) -> dict[str, Tensor]:
        """Running statistics to write on and throw away."""
        return {name: each.clone() for name, each in self.student.named_buffers()}

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def settings(self, clock: Clock) -> dict[str, Any]:
        factors = {name: float(each.detach()) for name, each in self.multipliers().items()}
        weights = {name: w * factors.get(name, 1.0) for name, w in self.criterion.weights(clock).items()}
        return {"weights": weights, "lr": self._rate() if self.lr is None else float(at(self.lr, clock))}

    def state_dict(self) -> dict[str, Any]:
        return self.engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.engine.load_state_dict(state)

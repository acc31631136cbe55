"""WithExits: a network that can answer before its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from decoct.capture import find_module
from decoct.errors import RecipeError, did_you_mean
from decoct.models.base import Interface, Model, shorthand
from decoct.spec import Choice


class WithExits(Model):
    """A network with further heads, exits, at modules on its way, each of which can answer in its place.

    `model`: the network; `at`: module paths in the order in which they run. An exit is a linear layer on the module's
    output: `[B, D]` as it is, maps `[B, C, H, W]` averaged to `pool` positions a side, tokens `[B, N, D]` the first.
    `exit`: the exit that answers, by path (None: the network's own end); what comes after it is not run nor exported.
    `threshold`: a sample is answered by the first exit whose highest probability reaches it; a batch is run only as far
    as its last sample needs. Feature paths: `net.` and then those of the network, `heads.0`, `heads.1`, ...

    Teerapittayanon et al. 2016, arXiv 1709.01686 (there by entropy); Zhang et al. 2019, arXiv 1905.08094.
    """

    use: ClassVar[str] = "exits"
    model: Annotated[Model, Choice("decoct.models"), BeforeValidator(shorthand)]
    at: tuple[str, ...] = Field(min_length=1)
    pool: int = Field(default=1, ge=1, le=1024)
    exit: str | None = None
    threshold: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_way(self) -> WithExits:
        if len(set(self.at)) < len(self.at):
            raise ValueError(f"at names a module twice: {', '.join(self.at)}")
        if self.exit is not None and self.exit not in self.at:
            raise ValueError(f"exit is {self.exit!r}; {did_you_mean(self.exit, self.at)}")
        if self.exit is not None and self.threshold is not None:
            raise ValueError("exit and threshold are both given; one exit answers, or the first that is sure enough")
        return self

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        exits = ExitNet(self.model.build(interface, pretrained=pretrained), self.at, interface, self.pool)
        exits.exit, exits.threshold = self.exit, self.threshold
        return exits


class Tap(nn.Module):
    """A module that shows its output to a listener on the way."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.listener: Callable[[Any], None] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        if self.listener is not None:
            self.listener(output)
        return output


class _Answered(Exception):
    """Ends a forward pass: all that was asked for is known."""


class ExitNet(nn.Module):
    """What the network takes -> logits `[B, outputs]`, of its end, of one exit, or of the first that is sure enough.

    `exit` and `threshold` may be set at any time; in training the end answers and all exits are computed.
    """

    def __init__(self, net: nn.Module, at: Sequence[str], interface: Interface, pool: int = 1) -> None:
        super().__init__()
        self.net = net
        self.at, self.pool = tuple(at), pool
        self.exit: str | None = None
        self.threshold: float | None = None
        for path in at:
            inner = find_module(net, path)
            parent, _, name = path.rpartition(".")
            find_module(net, parent)._modules[name] = Tap(inner)
        self.heads = nn.ModuleList(nn.Linear(width, interface.width) for width in self._widths(interface))

    def _widths(self, interface: Interface) -> list[int]:
        """Channels at each exit, seen by a sample of zeros in eval mode; RecipeError where the order is another."""
        seen: list[tuple[str, int]] = []

        def keep(path: str, output: Any) -> None:
            seen.append((path, summary(output, self.pool).shape[-1]))

        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            with torch.no_grad(), self._listening(keep):
                _run_on_zeros(self.net, interface)
        finally:
            for module, training in modes:
                module.training = training
        if tuple(path for path, _ in seen) != self.at:
            ran = ", ".join(path for path, _ in seen) or "none of them"
            raise RecipeError(
                f"exits at {', '.join(self.at)}: the network runs {ran}; list them in this order, each run once"
            )
        return [width for _, width in seen]

    @contextmanager
    def _listening(self, listen: Callable[[str, Any], None]) -> Iterator[None]:
        taps = [module for module in self.net.modules() if isinstance(module, Tap)]
        try:
            for path in self.at:
                vars(self.net.get_submodule(path))["listener"] = partial(listen, path)
            yield
        finally:
            for tap in taps:
                tap.listener = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        answers: list[Tensor] = []

        def listen(path: str, output: Any) -> None:
            answers.append(self.heads[len(answers)](summary(output, self.pool)))
            if self._enough(answers):
                raise _Answered

        with suppress(_Answered), self._listening(listen):
            raw = self.net(*args, **kwargs)
            answers.append(raw if isinstance(raw, Tensor) else raw.logits)
        return self._answer(answers)

    def _enough(self, answers: Sequence[Tensor]) -> bool:
        if self.training or torch.compiler.is_compiling():
            return False
        if self.exit is not None:
            return len(answers) == self.at.index(self.exit) + 1
        if self.threshold is None:
            return False
        return bool(sure(answers, self.threshold).any(0).all())

    def _answer(self, answers: Sequence[Tensor]) -> Tensor:
        if self.training:
            return answers[-1]
        if self.exit is not None:
            return answers[self.at.index(self.exit)]
        if self.threshold is None:
            return answers[-1]
        answer = answers[-1]
        for logits, enough in zip(reversed(answers[:-1]), sure(answers[:-1], self.threshold).flip(0)):
            answer = torch.where(enough.unsqueeze(-1), logits, answer)
        return answer


def sure(answers: Sequence[Tensor], threshold: float) -> Tensor:
    """Bool `[exits, B]`: whose highest probability reaches the threshold."""
    if not answers:
        return torch.zeros(0, 0, dtype=torch.bool)
    return torch.stack([logits.softmax(-1).amax(-1) >= threshold for logits in answers])


def summary(output: Any, pool: int = 1) -> Tensor:
    """`[B, D]` of a module's output, safe from later changes in place; RecipeError for what has no channels."""
    if isinstance(output, tuple | list):
        output = output[0]
    if isinstance(output, Tensor) and output.ndim == 4:
        return output.mean((2, 3)) if pool == 1 else F.adaptive_avg_pool2d(output, pool).flatten(1)
    if isinstance(output, Tensor) and output.ndim in (2, 3):
        return (output if output.ndim == 2 else output[:, 0]).clone()
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise RecipeError(f"an exit at a module that gives {shape}; allowed: [B, D], [B, C, H, W], [B, N, D]")


def _run_on_zeros(net: nn.Module, interface: Interface) -> None:
    if interface.kind == "text":
        ids = torch.zeros(1, *interface.shape, dtype=torch.long)
        net(input_ids=ids, attention_mask=torch.ones_like(ids))
    else:
        net(torch.zeros(1, *interface.shape))

"""`prune`: a module in, a plain smaller module out, without a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from decoct.compression import Evidence, Scheme
from decoct.errors import RecipeError
from decoct.pruning.channels import Channels

Loss = Callable[[nn.Module], Tensor | Iterable[Tensor]]


def prune(
    module: nn.Module,
    *,
    example: Any,
    ratio: float = 0.5,
    score: str = "l2",
    round_to: int = 8,
    scheme: Scheme | None = None,
    protect: Iterable[str] = (),
    loss: Loss | None = None,
) -> nn.Module:
    """A smaller copy of `module`; the module itself is left as it is.

    `example`: a batch as the module takes it: a tensor, a tuple of positional inputs or a mapping of named ones.
    `ratio`, `score`, `round_to`, `protect` are those of the scheme `channels`; `scheme` is another (`Heads()`,
    `Layers()`), which brings its own. `loss(module)` gives the loss of a batch, or the losses of several, for the score
    taylor. Train the result on: without that its quality is lost. RecipeError where nothing can be removed.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> prune(net, example=torch.ones(1, 4))
    Sequential(
      (0): Linear(in_features=4, out_features=16, bias=True)
      (1): ReLU()
      (2): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    if scheme is None:
        plain = {"ratio": ratio, "score": score, "round_to": round_to, "protect": tuple(protect)}
        scheme = Channels.parse(plain)
    elif (ratio, score, round_to, tuple(protect)) != (0.5, "l2", 8, ()):
        raise RecipeError("scheme brings its own settings; give ratio, score, round_to and protect to it")
    return scheme.apply(module, _evidence(example, loss)).module


def _evidence(example: Any, loss: Loss | None) -> Evidence:
    losses = None if loss is None else lambda module: _each(loss(module))
    if isinstance(example, Mapping):
        return Evidence((), dict(example), losses)
    return Evidence(tuple(example) if isinstance(example, tuple | list) else (example,), {}, losses)


def _each(found: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    else:
        yield from found

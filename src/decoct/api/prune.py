"""`prune`: a module in, a plain smaller module out, without a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.kinds import copyable, refuse_closed
from decoct.pruning.channels import Channels
from decoct.spec import Choice, as_recipe_error
from decoct.training.compression import Evidence, Scheme

Loss = Callable[[nn.Module], Tensor | Iterable[Tensor]]


def prune(
    module: nn.Module,
    *,
    example: Any,
    ratio: float = 0.5,
    score: str = "l2",
    round_to: int = 8,
    scheme: Scheme | Mapping[str, Any] | str | None = None,
    protect: Iterable[str] = (),
    loss: Loss | None = None,
) -> nn.Module:
    """A smaller copy of `module`; the module itself is left as it is.

    `example`: a batch as the module takes it: a tensor, a tuple of positional inputs or a mapping of named ones.
    `ratio`, `score`, `round_to`, `protect` are those of the scheme `channels`; `scheme` is another (`Heads()`,
    "heads", {"use": "heads", "ratio": 0.25}), which brings its own. `loss(module)` gives the loss of a batch, or the
    losses of several, for the score taylor. Train the result on: without that its quality is lost. RecipeError where
    nothing can be removed.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> prune(net, example=torch.ones(1, 4))
    Sequential(
      (0): Linear(in_features=4, out_features=16, bias=True)
      (1): ReLU()
      (2): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    if scheme is None or scheme == Channels.use:
        plain = {"ratio": ratio, "score": score, "round_to": round_to, "protect": tuple(protect)}
        scheme = Channels.parse(plain)
    elif (ratio, score, round_to, tuple(protect)) != (0.5, "l2", 8, ()):
        raise RecipeError(
            "scheme brings its own settings; give ratio, score, round_to and protect to it, "
            "as in scheme={'use': 'heads', 'ratio': 0.25}"
        )
    refuse_closed(module, "prune")
    return _chosen(scheme).apply(copyable(module), _evidence(example, loss)).module


def _chosen(scheme: Scheme | Mapping[str, Any] | str) -> Scheme:
    """The scheme that a name or a mapping describes."""
    try:
        found = Choice("decoct.pruning").validate({"use": scheme} if isinstance(scheme, str) else scheme)
    except ValidationError as error:
        raise as_recipe_error(error, "scheme") from None
    except ValueError as error:
        raise RecipeError(f"scheme: {error}") from None
    if not isinstance(found, Scheme):
        raise RecipeError(f"scheme: {found!r} is no pruning scheme; see `decoct list pruning`")
    return found


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

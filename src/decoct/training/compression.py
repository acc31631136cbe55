"""What every compression scheme takes and gives: Scheme, Evidence, Change, Compressed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from decoct.errors import PathError, RecipeError, did_you_mean
from decoct.models.own_inputs import copy_of
from decoct.spec import Spec
from decoct.training.callback import Callback

Losses = Callable[[nn.Module], Iterator[Tensor]]


@dataclass(frozen=True)
class Evidence:
    """What a scheme may see of a network's work.

    `args`, `kwargs`: what the module takes for a few real samples (preprocessed). `losses(module)`: the loss of a few
    training batches in turn, with gradients; None where there are none (a plain module without data).
    `passes(module)`: runs the module over a few training batches, for what is read off its layers while it runs.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    losses: Losses | None = None
    passes: Callable[[nn.Module], None] | None = None

    def run(self, module: nn.Module) -> Any:
        """What the module returns for the few samples, with gradients where they are on; they stay as they are."""
        return module(*copy_of(self.args), **copy_of(dict(self.kwargs)))

    def losses_of(self, module: nn.Module, setting: str) -> Iterator[Tensor]:
        """The losses; RecipeError names the setting that needs them where there are none."""
        if self.losses is None:
            raise RecipeError(f"{setting} needs losses on data; give `loss=` and data, or choose another")
        return self.losses(module)


@dataclass(frozen=True)
class Change:
    """What became of one module: `kind` says in what unit `before` and `after` are (channels, heads, layers, weights,
    rank, clusters); `note` why nothing changed, or what else is to be known."""

    path: str
    kind: str
    before: int
    after: int
    note: str = ""

    def data(self) -> dict[str, Any]:
        """As it stands in compression.json."""
        return asdict(self)


@dataclass(frozen=True)
class Compressed:
    """A smaller module, and what became of each layer."""

    module: nn.Module
    changes: tuple[Change, ...]


class Scheme(Spec):
    """One way to make a network smaller. It knows no task; a teacher reaches it through losses alone.

    `protect`: paths of modules that stay as they are; `*` stands for any part of a path.
    """

    protect: tuple[str, ...] = ()

    removes: ClassVar[bool] = True
    """Whether structure goes; else weights change in place (masks), and must be held while the network recovers."""

    @abstractmethod
    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        """The scheme at its full strength, at once. `module` is left as it is; the result is a copy, on its device, of
        plain layers that can be saved. RecipeError where nothing can be done, with the reasons."""

    def stage(self, number: int, count: int) -> Self:
        """The scheme of round `number` (1 to `count`), so that all rounds, one after the other, make up this one.

        RecipeError by default: the scheme works once.
        """
        raise RecipeError(f"scheme {self.use} works once; use another `recover` than iterative")

    def following(self, first: Sequence[Change]) -> Self:
        """This scheme of a round, told what the first round found; the scheme itself where shares are not of sizes."""
        return self

    def callback(self, module: nn.Module, evidence: Evidence, until: float) -> Callback:
        """What works on `module` itself while it trains, done at progress `until`; RecipeError by default."""
        raise RecipeError(f"scheme {self.use} cannot work while the network trains; use another `recover` than joint")

    def changes(self, module: nn.Module) -> tuple[Change, ...]:
        """What became of each layer of a module on which a callback has worked; nothing by default."""
        return ()

    def hold(self, module: nn.Module) -> Callback | None:
        """What keeps a compressed module as it is while it recovers; None where nothing need be done."""
        return None


def protected(module: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Paths of the modules that `patterns` name, with all below them; PathError for one that names none.

    >>> sorted(protected(nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU())), ["1"]))
    ['1', '1.0']
    """
    paths = [name for name, _ in module.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        named = [path for path in paths if fnmatchcase(path, pattern)]
        if not named:
            raise PathError(f"protect: no module {pattern!r}; {did_you_mean(pattern, paths)}")
        found |= {path for path in paths for name in named if path == name or path.startswith(f"{name}.")}
    return found

"""Batch, Outputs, TopK, Needs: what goes into a model, what it said, and what is wanted of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from decoct.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Batch:
    """Samples as models take them.

    `inputs` by side ("student", "teacher"): what that side's preprocessing takes, raw (pixels, ids, columns).
    `target` is what the task's loss takes; `labelled` `[B]` bool, None when every sample is;
    `keys` `[B]` uint64 content keys; `view` says which augmented view this is (epoch, or k of each sample); `seen`
    `[B]` uint64: what a sample looks like here, H(key, view, partner), by which stored answers are found; `also` a
    second source; `views` further augmented views, over which a teacher may average; `tickets` by teacher: answers
    that were asked for ahead.
    """

    inputs: Mapping[str, Any]
    target: Any = None
    labelled: Tensor | None = None
    keys: Any = None
    view: Any = 0
    also: Batch | None = None
    views: tuple[Batch, ...] = ()
    seen: Any = None
    tickets: Mapping[Any, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return _length(next(iter(self.inputs.values())))

    def side(self, name: str) -> Any:
        """The inputs of one side."""
        if name not in self.inputs:
            raise KeyError(f"the batch has no inputs for side {name!r}; {did_you_mean(name, self.inputs)}")
        return self.inputs[name]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with all its tensors on `device`; one object shared by two sides stays shared."""
        memo: dict[int, Any] = {}
        return replace(
            self,
            inputs={name: _move(value, device, memo) for name, value in self.inputs.items()},
            target=_move(self.target, device, memo),
            labelled=_move(self.labelled, device, memo),
            also=None if self.also is None else self.also.to(device),
            views=tuple(each.to(device) for each in self.views),
        )


Tail = Literal["bucket", "uniform", "sample"]
"""How the classes that were not kept are taken: as one bucket, each with an equal part, or by random draws."""


@dataclass(frozen=True)
class TopK:
    """The k largest of C log-probabilities at temperature 1, and what is known of the other C − k classes.

    `ids` int64 `[*B, k]`; `log_probs` float32 `[*B, k]`, normalised over all C classes; `rest` float32 `[*B, S]`, for
    each temperature T of `temperatures` log Σ exp(log p_j / T) over the classes j that were not kept (at T = 1: the log
    of the tail's mass); -inf where nothing is left. `drawn` int64 `[*B, n]`, for `tail` "sample": classes of the tail,
    drawn with replacement by their probability, each standing for 1/n of the tail's mass; `drawn_log_probs` float32
    `[*B, n]` their log-probabilities at temperature 1, where these are known.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor
    classes: int
    tail: Tail = "bucket"
    temperatures: tuple[float, ...] = (1.0,)
    drawn: Tensor | None = None
    drawn_log_probs: Tensor | None = None

    @classmethod
    def of(
        cls,
        logits: Tensor,
        k: int,
        *,
        tail: Tail = "bucket",
        temperatures: tuple[float, ...] = (1.0,),
        draws: int = 0,
        generator: torch.Generator | None = None,
    ) -> TopK:
        """What is kept of logits `[*B, C]`; with the tail "sample" `draws` of its classes, by `generator`.

        >>> TopK.of(torch.tensor([[0.0, 2.0, 1.0]]), 2).ids
        tensor([[1, 2]])
        """
        if not 1 <= k <= logits.shape[-1]:
            raise RecipeError(f"top_k is {k}; allowed: 1 to the number of classes, {logits.shape[-1]}")
        log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
        log_probs, ids = log_p.topk(k, dim=-1)
        others = log_p.scatter(-1, ids, -torch.inf)
        left = (others != -torch.inf).any(-1, keepdim=True)
        rest = [(others / each).logsumexp(-1) for each in temperatures]
        found = cls(ids, log_probs.float(), torch.stack(rest, -1).float(), logits.shape[-1], tail, temperatures)
        if tail != "sample":
            return found
        weights = (others - others.amax(-1, keepdim=True)).exp().masked_fill(~left, 1.0).flatten(0, -2)
        drawn = torch.multinomial(weights, max(draws, 1), replacement=True, generator=generator)
        drawn = drawn.reshape(*ids.shape[:-1], max(draws, 1))
        return replace(found, drawn=drawn, drawn_log_probs=log_p.gather(-1, drawn).float())

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> TopK:
        """The same on `device`."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> TopK:
        """The same with `change` applied to each of its tensors: a pick of items, another device."""
        return replace(
            self,
            ids=change(self.ids),
            log_probs=change(self.log_probs),
            rest=change(self.rest),
            drawn=None if self.drawn is None else change(self.drawn),
            drawn_log_probs=None if self.drawn_log_probs is None else change(self.drawn_log_probs),
        )

    def log_rest(self, temperature: float) -> Tensor:
        """log Σ exp(log p_j / T) over the classes that were not kept, `[*B]`, at any temperature T that is known.

        Exact at `temperatures`. Between them, and above the largest, where it nears log(C − k), it is interpolated in
        s = 1/T. As a function of s it is convex, so the chord is an upper bound, the neighbouring chords made longer
        are lower bounds, and a cubic is held between these: the truth is at most their distance away. Below the
        smallest temperature there is no upper bound: RecipeError for the tail "bucket"; the others follow the last
        chord, as a uniform tail does.

        >>> top = TopK(torch.tensor([[0]]), torch.tensor([[0.5]]).log(), torch.tensor([[0.5]]).log(), classes=3)
        >>> round(top.log_rest(2.0).exp().item(), 4)
        1.0
        """
        for column, each in enumerate(self.temperatures):
            if math.isclose(each, temperature, rel_tol=1e-6):
                return self.rest[..., column]
        others = self.classes - self.ids.shape[-1]
        if others == 0:
            return torch.full_like(self.rest[..., 0], -torch.inf)
        if temperature < min(self.temperatures) and self.tail == "bucket":
            known = ", ".join(f"{each:g}" for each in sorted(self.temperatures))
            raise RecipeError(
                f"temperature is {temperature:g}, and the teacher's tail is known for temperatures {known}; allowed: "
                f"{min(self.temperatures):g} or more. Label again with a temperature as low as this one"
            )
        order = sorted(range(len(self.temperatures)), key=lambda column: -self.temperatures[column])
        nodes = [0.0, *(1 / self.temperatures[column] for column in order)]
        empty = (self.rest == -torch.inf).any(-1)
        known_rest = [torch.full_like(self.rest[..., 0], math.log(others)), *(self.rest[..., c] for c in order)]
        values = torch.stack(known_rest).masked_fill(empty, 0.0)
        return _between(nodes, values, 1 / temperature).masked_fill(empty, -torch.inf)

    def spread(self) -> Tensor:
        """Log-probabilities of all classes `[*B, C]` with an equal part of the tail's mass for each class of the tail.

        >>> top = TopK(torch.tensor([[2]]), torch.tensor([[0.5]]).log(), torch.tensor([[0.5]]).log(), classes=3)
        >>> top.spread().exp()
        tensor([[0.2500, 0.2500, 0.5000]])
        """
        each = self.log_rest(1.0) - math.log(max(self.classes - self.ids.shape[-1], 1))
        full = each.unsqueeze(-1).expand(*each.shape, self.classes)
        return full.scatter(-1, self.ids, self.log_probs)


@dataclass(frozen=True)
class Outputs:
    """What a model said about a batch.

    `logits` `[*B, C]`, class axis last (regression: `[*B, 1]` or `[*B, D]` predictions); `mask` `[*B]`, True where a
    position counts; `features` captured by path (`"a.b"`, `"a.b[0]"` of a tuple, `"a.b#1"` the second call of a
    shared module, `"a.b@input"` what went into it, `"a.b@weight"` its parameter); `values` boxes, embeddings, spectra;
    `losses` computed inside the model; `heads` several tasks; `top` a distribution of which only the largest
    probabilities are known, in place of logits.
    """

    logits: Tensor | None = None
    mask: Tensor | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Outputs] = field(default_factory=dict)
    top: TopK | None = None


Predictor = Callable[[Batch], Outputs]
"""A torch model, a teacher, a store, an estimator, an exported file: all alike."""


@dataclass(frozen=True)
class Needs:
    """What terms want of a model beside its logits: `features` paths, and `gradient` of the outputs to the inputs.

    The path "*" stands for every layer: each module that is called once and gives a tensor (or a tuple that starts
    with one), in the order in which they finish.
    """

    features: frozenset[str] = frozenset()
    gradient: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.features | other.features, self.gradient or other.gradient)


def _move(value: Any, device: torch.device | str, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    moved = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
    elif isinstance(value, Mapping):
        moved = {key: _move(each, device, memo) for key, each in value.items()}
    elif isinstance(value, tuple | list):
        parts = [_move(each, device, memo) for each in value]
        moved = type(value)(*parts) if _is_named(value) else type(value)(parts)
    memo[id(value)] = moved
    return moved


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and type(value) is not tuple and "_fields" in vars(type(value))


def _length(value: Any) -> int:
    """Samples in a value: a mapping or tuple bundles several inputs, a list holds one entry for each sample."""
    if isinstance(value, Mapping):
        return _length(next(iter(value.values())))
    if isinstance(value, tuple):
        return _length(value[0])
    return len(value)


def _between(nodes: list[float], values: Tensor, s: float) -> Tensor:
    """A convex function at s from its `values` `[M, *B]` at ascending nodes; the last chord made longer beyond them."""

    def chord(left: int) -> Tensor:
        share = (s - nodes[left]) / (nodes[left + 1] - nodes[left])
        return values[left] + share * (values[left + 1] - values[left])

    last = len(nodes) - 1
    if s >= nodes[last]:
        return chord(last - 1)
    i = max(k for k in range(last) if nodes[k] <= s)
    used = range(max(0, i - 1), min(last, i + 2) + 1)
    cubic = torch.zeros_like(values[0])
    for k in used:
        cubic = cubic + values[k] * math.prod((s - nodes[m]) / (nodes[k] - nodes[m]) for m in used if m != k)
    for neighbour in (i - 1, i + 1):
        if 0 <= neighbour < last:
            cubic = torch.maximum(cubic, chord(neighbour))
    return torch.minimum(cubic, chord(i))

"""Batch and Outputs: what goes into a model, and what it said; Distribution, the forms in which it says it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from decoct.errors import DataError, RecipeError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Leaf = Tensor | np.ndarray
Change = Callable[[Any], Any]
Indices = Tensor | np.ndarray | slice
"""Which samples: int64 `[N]` places, or a slice."""


@dataclass(frozen=True)
class Batch:
    """Samples as models take them.

    `inputs` by reader ("student", "teacher", a teacher's own name): what its preprocessing takes, raw (pixels, ids,
    columns); `trace` by reader how places of it answer to places of the sample; `target` is what the task's loss takes;
    `labelled` `[B]` bool (or by head), None when every sample is; `keys` `[B]` uint64 content keys; `group` `[B]`
    uint64 which samples rows belong to, where one gives several; `view` says which augmented view this is (epoch, or k
    of each sample); `seen` `[B]` uint64: what a sample looks like here, H(key, view, partner), by which stored answers
    are found; `also` batches of further sources, by name; `views` further augmented views, over which a teacher may
    average; `tickets` by teacher: answers that were asked for ahead.

    A mapping or a tuple bundles several values; a tensor, an array or a list has one entry for each sample.
    """

    inputs: Mapping[str, Any]
    target: Any = None
    labelled: Any = None
    keys: Any = None
    view: Any = 0
    also: Mapping[str, Batch] = field(default_factory=dict)
    views: tuple[Batch, ...] = ()
    seen: Any = None
    tickets: Mapping[Any, Any] = field(default_factory=dict)
    trace: Mapping[str, Any] = field(default_factory=dict)
    group: Any = None

    def __len__(self) -> int:
        return samples_of(next(iter(self.inputs.values())))

    def side(self, name: str) -> Any:
        """The inputs of one reader."""
        if name not in self.inputs:
            raise KeyError(f"the batch has no inputs for reader {name!r}; {did_you_mean(name, self.inputs)}")
        return self.inputs[name]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with all its tensors on `device`; one object shared by two readers stays shared."""

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return self.map(move)

    def map(self, change: Change) -> Batch:
        """The same with `change` applied to every tensor and array in it; what is shared stays shared.

        What is there for one sample each (keys, seen, group) is changed too; `tickets` are no tensors and stay.
        """
        walk = _Walk.of(change)
        return replace(
            self,
            inputs=walk(self.inputs),
            target=walk(self.target),
            labelled=walk(self.labelled),
            keys=walk(self.keys),
            view=walk(self.view),
            seen=walk(self.seen),
            trace=walk(self.trace),
            group=walk(self.group),
            also={name: each.map(walk) for name, each in self.also.items()},
            views=tuple(each.map(walk) for each in self.views),
        )

    def take(self, indices: Indices) -> Batch:
        """The samples at `indices`, in all that has one entry for each; `also`, which has samples of its own, stays.

        Answers that were asked for ahead are those of the whole batch and are left out. DataError names what has
        another number of entries than the batch has samples.
        """
        return self._taken(Taking(len(self), indices))

    def _taken(self, pick: Taking) -> Batch:
        return replace(
            self,
            inputs={reader: pick(value, f"inputs.{reader}") for reader, value in self.inputs.items()},
            target=pick(self.target, "target"),
            labelled=pick(self.labelled, "labelled"),
            keys=pick(self.keys, "keys"),
            view=pick(self.view, "view"),
            seen=pick(self.seen, "seen"),
            trace={reader: pick(value, f"trace.{reader}") for reader, value in self.trace.items()},
            group=pick(self.group, "group"),
            views=tuple(each._taken(pick) for each in self.views),
            tickets={},
        )

    def of_head(self, name: str) -> Batch:
        """The batch as one head sees it: its target, and which samples have it."""
        target = self.target[name] if isinstance(self.target, Mapping) else self.target
        labelled = self.labelled[name] if isinstance(self.labelled, Mapping) else self.labelled
        return replace(self, target=target, labelled=labelled)

    def regenerated(self, inputs: Mapping[str, Any], target: Any = None) -> Batch:
        """A batch of other samples in the place of this one, all of which are labelled: `keys` are made anew from
        their content; what belongs to the old samples (`seen`, `views`, traces, groups, answers asked for ahead) goes.
        """
        keys = content_of(next(iter(inputs.values())))
        return replace(
            self,
            inputs=inputs,
            target=target,
            labelled=None,
            keys=keys,
            seen=None,
            views=(),
            tickets={},
            trace={},
            group=None,
        )

    def altered(self, inputs: Mapping[str, Any]) -> Batch:
        """The same samples with these inputs in the place of those of the readers named: an attack, a mixture.

        `keys`, targets and labels are the samples' and stay; `seen`, `views` and answers asked for ahead are of what
        they looked like before, and go, so that no stored or asynchronous answer is taken for one about them.
        """
        return replace(self, inputs={**self.inputs, **inputs}, seen=None, views=(), tickets={})


@dataclass(frozen=True)
class Dense:
    """A distribution (or predicted numbers) written out: `logits` `[*B, C]`, class axis last."""

    logits: Tensor

    @property
    def shape(self) -> torch.Size:
        """`[*B, C]`."""
        return self.logits.shape

    def map(self, change: Callable[[Tensor], Tensor]) -> Dense:
        """The same with `change` applied to its tensor."""
        return Dense(change(self.logits))


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: cap · tanh(z / cap) of z = scale · (hidden · weightᵀ + bias).

    `weight` `[V, D]`; `bias` `[V]`, -inf for columns that are no token (padding); `scale` above 0; `softcap` above 0,
    None for z itself.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Head:
        """The same with `change` applied to its tensors."""
        return replace(self, weight=change(self.weight), bias=None if self.bias is None else change(self.bias))

    def logits(self, hidden: Tensor) -> Tensor:
        """`[*B, V]` of hidden states `[*B, D]`."""
        found = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1:
            found = found * self.scale
        if self.softcap is None:
            return found
        found = self.softcap * torch.tanh(found / self.softcap)
        return found if self.bias is None else found + torch.where(self.bias == -torch.inf, -torch.inf, 0.0)


@dataclass(frozen=True)
class Factored:
    """A distribution as hidden states `[*B, D]` and the head that would make logits of them, never multiplied out.

    `dtype`: in which the forward pass would have taken the product (autocast's); None: the common type of both.
    """

    hidden: Tensor
    head: Head
    dtype: torch.dtype | None = None

    @property
    def shape(self) -> torch.Size:
        """`[*B, V]`, that of the logits."""
        return torch.Size((*self.hidden.shape[:-1], len(self.head.weight)))

    @property
    def product(self) -> torch.dtype:
        """The type in which the product is taken."""
        return self.dtype or torch.promote_types(self.hidden.dtype, self.head.weight.dtype)

    def cast(self) -> Factored:
        """The same with all tensors in the type of the product."""
        return self.map(lambda each: each.to(self.product))

    def dense(self) -> Tensor:
        """The logits `[*B, V]`, written out."""
        ready = self.cast()
        return ready.head.logits(ready.hidden)

    def rows(self, kept: Tensor | None = None, *, at_once: int | None = None) -> Iterator[Tensor]:
        """The logits of all items in order (of those of `kept` `[*B]` bool), `[n, V]` for `at_once` items at a time.

        >>> said = Factored(torch.ones(2, 3, 4), Head(torch.ones(5, 4)))
        >>> [each.shape[0] for each in said.rows(at_once=4)]
        [4, 2]
        """
        ready = self.cast()
        hidden = ready.hidden.reshape(-1, ready.hidden.shape[-1]) if kept is None else ready.hidden[kept]
        room = ROOM[hidden.device.type != "cpu"]
        count = at_once or max(room // (max(len(self.head.weight), 1) * hidden.element_size()), 1)
        for part in hidden.split(count):
            yield ready.head.logits(part)

    def top_k(self, k: int, *, at_once: int | None = None, **settings: Any) -> TopK:
        """`TopK.of` the logits with these settings, of `at_once` items at a time.

        >>> Factored(torch.ones(2, 3, 4), Head(torch.ones(5, 4))).top_k(2).ids.shape
        torch.Size([2, 3, 2])
        """
        items = self.hidden.shape[:-1]
        parts = [TopK.of(each, k, **settings) for each in self.rows(at_once=at_once)]
        return TopK.join(parts).each(lambda each: each.unflatten(0, items))

    def map(self, change: Callable[[Tensor], Tensor]) -> Factored:
        """The same with `change` applied to all its tensors, those of the head too (another device)."""
        return replace(self, hidden=change(self.hidden), head=self.head.map(change))


ROOM = (64 << 20, 1 << 30)
"""Bytes of logits that are written out at a time: on the CPU, on an accelerator."""

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

    @classmethod
    def join(cls, parts: Sequence[TopK]) -> TopK:
        """All items of `parts` in order, which were kept with the same settings."""
        first = parts[0]

        def both(name: str) -> Any:
            found = [getattr(each, name) for each in parts]
            return None if found[0] is None else torch.cat(found)

        names = ("ids", "log_probs", "rest", "drawn", "drawn_log_probs")
        return replace(first, **{name: both(name) for name in names})

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> torch.Size:
        """`[*B, C]`, that of the logits that these stand for."""
        return torch.Size((*self.ids.shape[:-1], self.classes))

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


Distribution = Dense | TopK | Factored
PARAMETERS = ("@weight", "@bias")
"""How the path of a feature ends that is a parameter, of which no axis counts samples."""
FORMS = frozenset(("dense", "top_k", "factored"))
"""The forms in which a model may say what it thinks of the classes."""


@dataclass(frozen=True)
class Outputs:
    """What a model said about a batch.

    `distribution`: of the classes (regression: predictions `[*B, D]` as Dense; a tensor is short for Dense); `mask`
    `[*B]`, True where a position counts; `features` captured by path (`"a.b"`, `"a.b[0]"` of a tuple, `"a.b#1"` the
    second call of a shared module, `"a.b@input"` what went into it, `"a.b@weight"` its parameter); `values` boxes,
    embeddings, spectra; `losses` computed inside the model; `heads` several tasks; `also` what it said about the
    batches of further sources; `apart`: names of features whose first axis does not count samples (regions of a
    detector).
    """

    distribution: Distribution | None = None
    mask: Tensor | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Outputs] = field(default_factory=dict)
    also: Mapping[str, Outputs] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if isinstance(self.distribution, Tensor):
            object.__setattr__(self, "distribution", Dense(self.distribution))

    @cached_property
    def logits(self) -> Tensor | None:
        """`[*B, C]`, class axis last; of a factored distribution made once; None where only the largest are known."""
        outputs = self.distribution
        if isinstance(outputs, Dense):
            return outputs.logits
        return outputs.dense() if isinstance(outputs, Factored) else None

    @property
    def shape(self) -> torch.Size | None:
        """`[*B, C]`, that of the logits in whatever form; None where the model said nothing of classes."""
        return None if self.distribution is None else self.distribution.shape

    @property
    def top(self) -> TopK | None:
        """The largest probabilities, where only these are known."""
        return self.distribution if isinstance(self.distribution, TopK) else None

    def tensors(self) -> list[Tensor]:
        """All its tensors, in one order."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(keep)
        return found

    def to(self, device: torch.device | str) -> Outputs:
        """The same with all its tensors on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    @property
    def places(self) -> torch.Size | None:
        """`[*B]`, the places at which it answers; None where it says nothing of classes. Multiplies nothing out."""
        outputs = self.distribution
        if isinstance(outputs, TopK):
            return outputs.ids.shape[:-1]
        if isinstance(outputs, Factored):
            return outputs.hidden.shape[:-1]
        return None if outputs is None else outputs.logits.shape[:-1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """The same with `change` applied to every tensor in it; what is shared stays shared."""
        walk = _Walk.of(change)
        outputs = self.distribution
        return replace(
            self,
            distribution=outputs.each(walk) if isinstance(outputs, TopK) else outputs and outputs.map(walk),
            mask=walk(self.mask),
            values=walk(self.values),
            features=walk(self.features),
            losses=walk(self.losses),
            heads={name: each.map(walk) for name, each in self.heads.items()},
            also={name: each.map(walk) for name, each in self.also.items()},
        )

    def take(self, indices: Indices, samples: int) -> Outputs:
        """What was said about the samples at `indices` of `samples`.

        Features that do not belong to samples (those `apart`, and those with another number of entries) and losses,
        which are of the whole batch, are left out; parameters (`a.b@weight`) and a head's weights stay as they are.
        DataError names logits or values with another number of entries.
        """
        return self._taken(Taking(samples, indices))

    def _taken(self, pick: Taking) -> Outputs:
        outputs = self.distribution
        if isinstance(outputs, Dense):
            outputs = Dense(pick(outputs.logits, "logits"))
        elif isinstance(outputs, TopK):
            outputs = outputs.each(lambda each: pick(each, "logits"))
        elif outputs is not None:
            outputs = replace(outputs, hidden=pick(outputs.hidden, "logits"))
        features = {
            name: each if name.endswith(PARAMETERS) else pick(each, name)
            for name, each in self.features.items()
            if name.endswith(PARAMETERS) or (name not in self.apart and pick.fits(each))
        }
        return replace(
            self,
            distribution=outputs,
            mask=pick(self.mask, "mask"),
            values=pick(self.values, "values"),
            features=features,
            losses={},
            heads={name: each._taken(pick) for name, each in self.heads.items()},
        )


class Predictor(Protocol):
    """A torch model, a teacher, a store, an estimator, an exported file: all alike."""

    def __call__(self, batch: Batch, /) -> Outputs:
        """What it says about a batch."""


@dataclass(frozen=True)
class Limits:
    """When one that writes stops at the latest: after `length` pieces (tokens, frames) of its own."""

    length: int


class Writer(Predictor, Protocol):
    """A Predictor that also writes: a language model, a decoder of sequences."""

    def generate(self, batch: Batch, seeds: np.ndarray, limits: Limits) -> Batch:
        """What it writes to each sample of a batch, drawn by `seeds` uint64 `[B]` alone, as `batch.regenerated`."""


@dataclass(frozen=True)
class Needs:
    """What readers want of a model: `features` paths, the `forms` of its distribution that all of them take, the
    `losses` that it computes itself, `gradient` of the outputs to the inputs, and the further `sources` about whose
    batches it is asked too.

    Nobody reads the distribution: every form will do. The path "*" stands for every layer: each module that is called
    once and gives a tensor (or a tuple that starts with one), in the order in which they finish.
    """

    features: frozenset[str] = frozenset()
    gradient: bool = False
    forms: frozenset[str] = FORMS
    losses: bool = False
    sources: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.features | other.features,
            self.gradient or other.gradient,
            self.forms & other.forms,
            self.losses or other.losses,
            self.sources | other.sources,
        )


DENSE = Needs(forms=frozenset(("dense",)))
"""Of readers that want logits written out."""


class _Walk:
    """Applies a function to every tensor and array in nested mappings, tuples and lists; shared values stay shared."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._done: dict[int, tuple[Any, Any]] = {}

    @classmethod
    def of(cls, change: Change) -> _Walk:
        """The walk under way, or a new one: what is shared between the parts of one whole stays shared."""
        return change if isinstance(change, _Walk) else cls(change)

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, int | float | str):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = value, self._changed(value)
        return self._done[id(value)][1]

    def _changed(self, value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            return self._change(value)
        return _rebuilt(value, self)


def changed(value: Any, change: Change) -> Any:
    """Nested values with `change` applied to every tensor and array in them; what is shared stays shared.

    >>> changed({"a": (torch.ones(2), None)}, lambda each: 2 * each)
    {'a': (tensor([2., 2.]), None)}
    """
    return _Walk(change)(value)


class Taking:
    """Picks entries of some samples out of nested values of `samples` each; shared values stay shared."""

    def __init__(self, samples: int, indices: Indices) -> None:
        self._samples, self._indices = samples, indices
        self._done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any, name: str) -> Any:
        if value is None or isinstance(value, int | float | str):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = value, self._taken(value, name)
        return self._done[id(value)][1]

    def fits(self, value: Tensor) -> bool:
        """Whether a tensor has one entry for each sample."""
        return value.ndim > 0 and len(value) == self._samples

    def _taken(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
            return value
        if isinstance(value, Tensor | np.ndarray | list):
            if len(value) != self._samples:
                raise DataError(
                    f"{name} of a batch has {len(value)} entries and the batch {self._samples} samples; give one entry "
                    "for each sample"
                )
            return self._picked(value)
        if isinstance(value, Mapping):
            return {key: self(each, f"{name}.{key}") for key, each in value.items()}
        return _rebuilt(value, lambda each: self(each, name))

    def _picked(self, value: Any) -> Any:
        indices = self._indices
        if isinstance(indices, slice):
            return value[indices]
        if isinstance(value, Tensor):
            return value.index_select(0, torch.as_tensor(indices).to(value.device))
        places = indices.cpu().numpy() if isinstance(indices, Tensor) else indices
        return value[places] if isinstance(value, np.ndarray) else [value[int(i)] for i in places]


def _rebuilt(value: Any, change: Change) -> Any:
    """A mapping, tuple, list or dataclass with its parts changed; anything else as it is."""
    if isinstance(value, Mapping):
        return {key: change(each) for key, each in value.items()}
    if isinstance(value, list):
        return [change(each) for each in value]
    if isinstance(value, tuple):
        parts = [change(each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if _is_bundle(value):
        return replace(value, **{each.name: change(getattr(value, each.name)) for each in fields(value) if each.init})
    return value


def leaves(value: Any) -> Iterator[Leaf]:
    """Every tensor and array in nested mappings, tuples, lists and dataclasses, in order.

    >>> [each.shape for each in leaves({"a": (torch.ones(2), None), "b": [np.ones(3)]})]
    [torch.Size([2]), (3,)]
    """
    if value is None:
        return
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from leaves(each)
    elif _is_bundle(value):
        for each in fields(value):
            yield from leaves(getattr(value, each.name))


def _is_bundle(value: Any) -> TypeGuard[DataclassInstance]:
    return is_dataclass(value) and not isinstance(value, type)


def device_of(value: Any) -> torch.device:
    """The device of the first tensor in nested values; the CPU where there is none.

    >>> device_of({"texts": ["a"], "ids": torch.ones(1)})
    device(type='cpu')
    """
    return next((each.device for each in leaves(value) if isinstance(each, Tensor)), torch.device("cpu"))


def samples_of(value: Any) -> int:
    """Samples in a value: a mapping or tuple bundles several inputs, a list holds one entry for each sample.

    What has no entry for each sample (a number, a tensor without axes) does not say; DataError where nothing does.

    >>> samples_of({"scale": torch.tensor(2.0), "x": (torch.ones(3, 1), torch.ones(3))})
    3
    """
    found = _samples(value)
    if found is None:
        raise DataError(f"a batch with inputs of type {type(value).__name__} that hold no entry for any sample")
    return found


def _samples(value: Any) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    if isinstance(value, list):
        return len(value)
    parts: Any = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ()
    if _is_bundle(value):
        parts = (getattr(value, each.name) for each in fields(value))
    return next((found for each in parts if (found := _samples(each)) is not None), None)


def content_of(inputs: Any) -> np.ndarray:
    """uint64 `[B]`: the first 8 bytes of the SHA-256 of each sample's own inputs (of ids those that the attention mask
    keeps, so that padding does not matter). What has no entry for each sample does not matter either."""
    if isinstance(inputs, Mapping | tuple):
        return _content_of_parts(dict(_parts(inputs)))
    if isinstance(inputs, list):
        return np.array([_content_of_one(each) for each in inputs], np.uint64)
    array = _array(inputs)
    prefix = hashlib.sha256(f"{array.dtype.str} {array.shape[1:]}".encode())
    return _numbers(_digest(prefix, row.tobytes()) for row in array)


def _content_of_one(value: Any) -> np.uint64:
    """That of a batch of this one sample."""
    bundle = isinstance(value, Mapping | tuple)
    found: np.uint64 = content_of(_Walk(lambda leaf: leaf[None])(value) if bundle else _array(value)[None])[0]
    return found


def _parts(inputs: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """By dotted names what has one entry for each sample: arrays, and lists of arrays."""
    if isinstance(inputs, Mapping | tuple):
        named = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
        for name, value in named:
            yield from _parts(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(inputs, list):
        yield prefix, [np.asarray(_array(each) if isinstance(each, Tensor) else each) for each in inputs]
    elif isinstance(inputs, Tensor | np.ndarray) and inputs.ndim:
        yield prefix, _array(inputs)


def _content_of_parts(parts: Mapping[str, Any]) -> np.ndarray:
    arrays = dict(sorted(parts.items()))
    kept = arrays.pop("attention_mask", None)
    digests = []
    for row in range(len(next(iter(arrays.values())))):
        state = hashlib.sha256()
        for name, array in arrays.items():
            one = array[row]
            if kept is not None and one.shape[:1] == kept.shape[1:]:
                one = one[kept[row].astype(bool)]
            state.update(f"{name} {one.dtype.str} {one.shape}".encode() + one.tobytes())
        digests.append(state.digest()[:8])
    return _numbers(digests)


def _digest(prefix: Any, content: bytes) -> bytes:
    state = prefix.copy()
    state.update(content)
    found: bytes = state.digest()[:8]
    return found


def _numbers(digests: Any) -> np.ndarray:
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _array(value: Any) -> np.ndarray:
    found: np.ndarray = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
    return found


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

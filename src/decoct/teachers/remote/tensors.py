"""Inputs and Outputs as safetensors: names, numbers and a little JSON, nothing that could run.

A request holds `input` or `input/NAME`, and the metadata `needs`: `{"features": [...], "strides": {...}}`, strides of
tensors with axes of length 1 (torch picks kernels by them, and these round differently; they may be left out), and
`forms` where the client takes more than logits written out. An answer holds `logits`, `mask`, `values/NAME`,
`features/NAME` and `losses/NAME`, and for each head the same under `heads/HEAD/`. Where the client takes factored
distributions, `hidden` may stand in the place of `logits`, and the metadata `factored`: by prefix the `fingerprint` of
the head (`weight`, perhaps `bias`), which is fetched once, its `scale` and `softcap`, and the `dtype` of the product.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from decoct.artifact import DEEPEST, parse_json
from decoct.errors import DataError, RecipeError
from decoct.outputs import FORMS, Dense, Factored, Head, Needs, Outputs
from decoct.teachers.remote.heads import Fetched, Offered

GROUPS = ("values", "features", "losses")
FINGERPRINT = re.compile("[0-9a-f]{64}")
PRODUCTS: dict[str | None, torch.dtype | None] = {
    None: None,
    "torch.float64": torch.float64,
    "torch.float32": torch.float32,
    "torch.bfloat16": torch.bfloat16,
    "torch.float16": torch.float16,
}
"""Types in which a product of hidden states and a head may be taken, by name; None: that of both."""


def from_inputs(inputs: Any, needs: Needs) -> bytes:
    """A request: the inputs of one side, a tensor or a mapping of tensors, and the features wanted."""
    named = {f"input/{name}": each for name, each in inputs.items()} if isinstance(inputs, Mapping) else None
    named = {"input": inputs} if named is None else named
    wrong = sorted({type(each).__name__ for each in named.values() if not isinstance(each, Tensor)})
    if wrong:
        raise RecipeError(f"a server takes tensors, and the inputs of this task hold {', '.join(wrong)}")
    plain = _plain(named)
    strides = {name: list(each.stride()) for name, each in plain.items() if 1 in each.shape}
    wanted: dict[str, Any] = {"features": sorted(needs.features), "strides": strides}
    if "factored" in needs.forms:
        wanted["forms"] = ["dense", "factored"]
    return save(plain, {"needs": json.dumps(wanted)})


def to_inputs(body: bytes) -> tuple[Any, Needs]:
    """What `from_inputs` wrote; DataError where it is something else.

    >>> import torch
    >>> inputs, needs = to_inputs(from_inputs({"ids": torch.ones(2)}, Needs(frozenset({"a.b"}))))
    >>> inputs, needs.features
    ({'ids': tensor([1., 1.])}, frozenset({'a.b'}))
    """
    tensors = _load(body)
    try:
        needs = parse_json(_metadata(body)["needs"], "the request's `needs`", error=DataError)
        features = frozenset(map(str, needs["features"]))
        wanted = Needs(features, forms=FORMS & frozenset(map(str, needs.get("forms", ["dense"]))))
        tensors |= {name: _strided(tensors[name], each) for name, each in needs.get("strides", {}).items()}
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the request says nothing of what it needs ({type(error).__name__}: {error})") from None
    if set(tensors) == {"input"}:
        return tensors["input"], wanted
    if not tensors or not all(name.startswith("input/") for name in tensors):
        raise DataError(f"the request holds {', '.join(sorted(tensors)) or 'nothing'}; expected input or input/NAME")
    return {name.removeprefix("input/"): each for name, each in tensors.items()}, wanted


def from_outputs(outputs: Outputs, offered: Offered | None = None) -> bytes:
    """An answer; a factored distribution is written out, or, with `offered`, as hidden states and a fingerprint."""
    factored: dict[str, dict[str, Any]] = {}
    named = _plain(_named(outputs, "", factored, offered))
    return save(named, {"factored": json.dumps(factored)} if factored else None)


def to_outputs(body: bytes, fetched: Fetched | None = None) -> Outputs:
    """What `from_outputs` wrote; DataError where it is something else. `fetched`: where heads come from."""
    tensors = _load(body)
    try:
        factored = parse_json(_metadata(body).get("factored", "{}"), "the answer's `factored`", error=DataError)
        heads = {str(prefix): _Factors.of(each) for prefix, each in factored.items()}
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the answer says nothing of its head ({type(error).__name__}: {error})") from None
    return _built(tensors, "", heads, fetched)


def from_head(head: Head) -> bytes:
    """A head's weight and bias."""
    pair = {"weight": head.weight, "bias": head.bias}
    return save(_plain({name: each for name, each in pair.items() if each is not None}))


def to_head(body: bytes) -> Head:
    """What `from_head` wrote; DataError where it is something else.

    >>> to_head(from_head(Head(torch.ones(2, 1)))).weight.shape
    torch.Size([2, 1])
    """
    tensors = _load(body)
    if not {"weight"} <= set(tensors) <= {"weight", "bias"} or tensors["weight"].ndim != 2:
        raise DataError(f"a head holds {', '.join(sorted(tensors)) or 'nothing'}; expected weight [V, D], perhaps bias")
    return Head(tensors["weight"], tensors.get("bias"))


@dataclass(frozen=True)
class _Factors:
    """What an answer says of a head: its fingerprint and what is done with it."""

    fingerprint: str
    scale: float
    softcap: float | None
    dtype: torch.dtype | None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> _Factors:
        """From JSON; ValueError, KeyError or TypeError for something else."""
        softcap, name = plain["softcap"], str(plain["fingerprint"])
        if not FINGERPRINT.fullmatch(name):
            raise ValueError(f"fingerprint {name[:80]!r}")
        return cls(name, float(plain["scale"]), softcap and float(softcap), PRODUCTS[plain["dtype"]])


def _named(
    outputs: Outputs, prefix: str, factored: dict[str, dict[str, Any]], offered: Offered | None
) -> dict[str, Tensor]:
    if outputs.top is not None:
        raise RecipeError("a server answers with logits, and this teacher knows the largest probabilities alone")
    own = outputs.distribution
    first: tuple[str, Tensor | None]
    if isinstance(own, Factored) and offered is not None:
        dtype = None if own.dtype is None else str(own.dtype)
        after = {"scale": own.head.scale, "softcap": own.head.softcap, "dtype": dtype}
        factored[prefix] = {"fingerprint": offered.fingerprint(own.head), **after}
        first = "hidden", own.hidden
    else:
        first = "logits", outputs.logits
    found = {name: each for name, each in (first, ("mask", outputs.mask)) if each is not None}
    groups = {"values": outputs.values, "features": outputs.features, "losses": outputs.losses}
    found |= {f"{group}/{name}": each for group, named in groups.items() for name, each in named.items()}
    found = {prefix + name: each for name, each in found.items()}
    for head, each in outputs.heads.items():
        found |= _named(each, f"{prefix}heads/{head}/", factored, offered)
    return found


def _built(
    tensors: Mapping[str, Tensor], prefix: str, factors: Mapping[str, _Factors], fetched: Fetched | None
) -> Outputs:
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    heads: dict[str, dict[str, Tensor]] = {}
    for name, each in tensors.items():
        group, _, rest = name.partition("/")
        if name.count("/") > DEEPEST:
            raise DataError(f"the answer holds heads in each other, {name.count('/')} deep")
        if group == "heads":
            head, _, inner = rest.partition("/")
            heads.setdefault(head, {})[inner] = each
        elif group in groups:
            groups[group][rest] = each
        elif name not in ("logits", "hidden", "mask"):
            raise DataError(f"the answer holds {name!r}, which means nothing")
    outputs: Dense | Factored | None = Dense(tensors["logits"]) if "logits" in tensors else None
    if "hidden" in tensors:
        outputs = _factored(tensors["hidden"], factors.get(prefix), fetched)
    return Outputs(
        outputs,
        mask=tensors.get("mask"),
        heads={head: _built(each, f"{prefix}heads/{head}/", factors, fetched) for head, each in heads.items()},
        values=groups["values"],
        features=groups["features"],
        losses=groups["losses"],
    )


def _factored(hidden: Tensor, factors: _Factors | None, fetched: Fetched | None) -> Factored:
    if factors is None or fetched is None:
        raise DataError("the answer holds hidden states, and " + ("no head" if factors is None else "nobody asked"))
    head = fetched(factors.fingerprint, factors.scale, factors.softcap)
    if hidden.ndim < 1 or hidden.shape[-1] != head.weight.shape[-1]:
        raise DataError(f"the answer holds hidden states {list(hidden.shape)} for a head {list(head.weight.shape)}")
    return Factored(hidden, head, factors.dtype)


def _metadata(body: bytes) -> dict[str, Any]:
    size = int.from_bytes(body[:8], "little")
    found: dict[str, Any] = parse_json(body[8 : 8 + size], "the header", dict[str, Any], error=DataError)
    return dict(found.get("__metadata__", {}))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they can be written: on the CPU, dense, none in another's memory."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        each = tensor.detach().cpu().contiguous()
        found[name] = each.clone() if each.untyped_storage().data_ptr() in seen else each
        seen.add(each.untyped_storage().data_ptr())
    return found


def _strided(tensor: Tensor, strides: Any) -> Tensor:
    """The same numbers in the same memory; the strides of axes of length 1 are arbitrary, and here as they were."""
    lengths, own = tensor.shape, tensor.stride()
    if len(strides) != len(own) or any(n != 1 and a != b for n, a, b in zip(lengths, own, strides)):
        raise ValueError(f"strides {strides} for a tensor {list(lengths)}")
    return tensor.as_strided(
        lengths, [each if n != 1 else min(max(int(s), 0), 1 << 40) for n, each, s in zip(lengths, own, strides)]
    )


def _load(body: bytes) -> dict[str, Tensor]:
    try:
        return {name: each.clone() for name, each in load(body).items()}  # aligned as torch aligns
    except (SafetensorError, ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{len(body)} bytes that are no safetensors ({error})") from None

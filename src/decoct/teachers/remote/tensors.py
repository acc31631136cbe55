"""Inputs and Outputs as safetensors: names, numbers and a little JSON, nothing that could run.

A request holds `input` or `input/NAME`, and the metadata `needs`: `{"features": [...], "strides": {...}}`, strides of
tensors with axes of length 1 (torch picks kernels by them, and these round differently; they may be left out). An
answer holds `logits`, `mask`, `values/NAME`, `features/NAME` and `losses/NAME`, and for each head the same under
`heads/HEAD/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from decoct.errors import DataError, RecipeError
from decoct.outputs import Dense, Needs, Outputs

GROUPS = ("values", "features", "losses")


def from_inputs(inputs: Any, needs: Needs) -> bytes:
    """A request: the inputs of one side, a tensor or a mapping of tensors, and the features wanted."""
    named = {f"input/{name}": each for name, each in inputs.items()} if isinstance(inputs, Mapping) else None
    named = {"input": inputs} if named is None else named
    wrong = sorted({type(each).__name__ for each in named.values() if not isinstance(each, Tensor)})
    if wrong:
        raise RecipeError(f"a server takes tensors, and the inputs of this task hold {', '.join(wrong)}")
    plain = _plain(named)
    strides = {name: list(each.stride()) for name, each in plain.items() if 1 in each.shape}
    return save(plain, {"needs": json.dumps({"features": sorted(needs.features), "strides": strides})})


def to_inputs(body: bytes) -> tuple[Any, Needs]:
    """What `from_inputs` wrote; DataError where it is something else.

    >>> import torch
    >>> inputs, needs = to_inputs(from_inputs({"ids": torch.ones(2)}, Needs(frozenset({"a.b"}))))
    >>> inputs, needs.features
    ({'ids': tensor([1., 1.])}, frozenset({'a.b'}))
    """
    tensors = _load(body)
    try:
        size = int.from_bytes(body[:8], "little")
        needs = json.loads(json.loads(body[8 : 8 + size])["__metadata__"]["needs"])
        features = frozenset(map(str, needs["features"]))
        tensors |= {name: _strided(tensors[name], each) for name, each in needs.get("strides", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the request says nothing of what it needs ({type(error).__name__}: {error})") from None
    if set(tensors) == {"input"}:
        return tensors["input"], Needs(features)
    if not tensors or not all(name.startswith("input/") for name in tensors):
        raise DataError(f"the request holds {', '.join(sorted(tensors)) or 'nothing'}; expected input or input/NAME")
    return {name.removeprefix("input/"): each for name, each in tensors.items()}, Needs(features)


def from_outputs(outputs: Outputs) -> bytes:
    """An answer."""
    return save(_plain(_named(outputs, "")))


def to_outputs(body: bytes) -> Outputs:
    """What `from_outputs` wrote; DataError where it is something else."""
    return _built(_load(body))


def _named(outputs: Outputs, prefix: str) -> dict[str, Tensor]:
    if outputs.top is not None:
        raise RecipeError("a server answers with logits, and this teacher knows the largest probabilities alone")
    found = {name: each for name, each in (("logits", outputs.logits), ("mask", outputs.mask)) if each is not None}
    groups = {"values": outputs.values, "features": outputs.features, "losses": outputs.losses}
    found |= {f"{group}/{name}": each for group, named in groups.items() for name, each in named.items()}
    found = {prefix + name: each for name, each in found.items()}
    for head, each in outputs.heads.items():
        found |= _named(each, f"{prefix}heads/{head}/")
    return found


def _built(tensors: Mapping[str, Tensor]) -> Outputs:
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    heads: dict[str, dict[str, Tensor]] = {}
    for name, each in tensors.items():
        group, _, rest = name.partition("/")
        if group == "heads":
            head, _, inner = rest.partition("/")
            heads.setdefault(head, {})[inner] = each
        elif group in groups:
            groups[group][rest] = each
        elif name not in ("logits", "mask"):
            raise DataError(f"the answer holds {name!r}, which means nothing")
    return Outputs(
        Dense(tensors["logits"]) if "logits" in tensors else None,
        mask=tensors.get("mask"),
        heads={head: _built(each) for head, each in heads.items()},
        values=groups["values"],
        features=groups["features"],
        losses=groups["losses"],
    )


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
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{len(body)} bytes that are no safetensors ({error})") from None

"""Heads: running a model without its last layer, so that its logits are never written out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from decoct.capture import EVERY, capture, headless, split_path
from decoct.errors import PathError
from decoct.outputs import Factored, Head, Outputs

SAME = 1e-4
"""How far logits made from a head may be from the model's own, relative to the largest of them."""


@dataclass(frozen=True)
class HeadPlace:
    """Where a model's head is, and what the model does to its logits: cap · tanh(scale · logits / cap)."""

    path: str
    scale: float = 1.0
    softcap: float | None = None


@runtime_checkable
class _HasHead(Protocol):
    """A network of the transformers library, and what is like one."""

    config: Any

    def get_output_embeddings(self) -> nn.Module | None: ...


@runtime_checkable
class _HasLogits(Protocol):
    """What a network may return in the place of a tensor."""

    logits: Tensor


def run_factored(
    module: nn.Module,
    call: Callable[[], Any],
    head: str,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    features: Iterable[str] = (),
) -> Outputs:
    """What a model says when its head is left out: a Factored distribution, and `features` by their paths.

    `call` runs `module`; `head` is the path of its linear layer at the end, `scale` and `softcap` what the model does
    to logits after it; `dtype` the type of the product, autocast's by default where it is on. The head is read after
    the pass. PathError: a head that is no plain linear layer or is not called once; a feature that is the logits.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    >>> x = torch.ones(1, 2)
    >>> said = run_factored(model, lambda: model(x), "1", features=["0"])
    >>> said.distribution.hidden.shape, said.features["0"].shape, torch.equal(said.logits, model(x))
    (torch.Size([1, 3]), torch.Size([1, 3]), True)
    """
    paths = tuple(features)
    for each in paths:
        if each == EVERY or (split_path(each).module == head and split_path(each).part is None):
            raise PathError(f"feature path {each!r}: the head gives no logits here; ask for them written out")
    with capture(module, paths) as captured, headless(module, head) as found:
        raw = call()
    hidden = _joined(found.hidden, raw)
    if dtype is None and hidden.dtype != torch.float64 and torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    outputs = Factored(hidden, Head(found.weight, found.bias, scale, softcap), dtype)
    return Outputs(outputs, features={path: captured[path] for path in paths})


def find_head(module: nn.Module, call: Callable[[], Any]) -> HeadPlace | None:
    """Where the head of a language model is; None where its logits are not those of a head, which it then writes out.

    For networks with `get_output_embeddings()`; scale and soft cap stand in the config. `call` runs the module on a few
    samples, with its head and without: other logits (a bias added after the head, columns left out) give None.
    """
    head = module.get_output_embeddings() if isinstance(module, _HasHead) else None
    path = next((name for name, each in module.named_modules() if each is head), "") if head is not None else ""
    if not path:
        return None
    assert isinstance(module, _HasHead)
    place = HeadPlace(path, *_after(module.config))
    with torch.no_grad():
        expected = next(_tensors(call()), None)
        try:
            found = run_factored(module, call, path, scale=place.scale, softcap=place.softcap).logits
        except PathError:
            return None
    assert found is not None
    if expected is None or expected.shape != found.shape:
        return None
    far = (found.double() - expected.double()).abs().max()
    return place if far <= SAME * expected.double().abs().max() else None


def _after(config: Any) -> tuple[float, float | None]:
    """Scale and soft cap by the names that architectures of transformers give them."""
    settings = config.get_text_config().to_dict()
    scale = float(settings.get("logit_scale") or 1.0) / float(settings.get("logits_scaling") or 1.0)
    return scale, settings.get("final_logit_softcapping")


def _joined(hidden: Tensor, raw: Any) -> Tensor:
    """The hidden states, joined to the empty logits that the model returned.

    A sharded model learns from the gradient of what it returned that its backward pass has begun.
    """
    for each in _tensors(raw):
        if each.requires_grad and not each.numel():
            hidden = hidden + each.sum().to(hidden.dtype)
    return hidden


def _tensors(raw: Any) -> Iterator[Tensor]:
    """The tensors that a model returned, logits first where they are named."""
    if isinstance(raw, Tensor):
        yield raw
    elif isinstance(raw, Mapping):
        for _, each in sorted(raw.items(), key=lambda item: item[0] != "logits"):
            yield from _tensors(each)
    elif isinstance(raw, tuple | list):
        for each in raw:
            yield from _tensors(each)
    elif isinstance(raw, _HasLogits):
        yield raw.logits

"""What a network's forward pass raised, told in the words of who gave the network and the batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoct.errors import DecoctError, ForwardFailed
from decoct.memory import lacks_memory
from decoct.outputs import leaves

CAUSES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""What code of others raises on a batch that it does not take."""


class telling:  # noqa: N801 - a context manager, entered at every forward pass: no generator, which costs 3 times this
    """While the body runs `module` on `inputs`, what its code raises becomes ForwardFailed.

    It names the side, the module, the batch with its shapes and types, the mode, the cause, and what to do. Errors of
    decoct and those of memory pass as they are.
    """

    __slots__ = ("inputs", "module", "reader")

    def __init__(self, module: nn.Module, reader: str, inputs: Any) -> None:
        self.module, self.reader, self.inputs = module, reader, inputs

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, DecoctError) or not isinstance(error, CAUSES):
            return
        if lacks_memory(error) or _of_decoct(error):
            return
        lines = str(error).strip().splitlines()
        cause = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
        mode = "training" if self.module.training else "eval"
        raise ForwardFailed(
            f"the {self.reader} ({type(self.module).__name__}, in {mode} mode) failed on a batch of "
            f"{described(self.inputs)}: {cause}; {remedy(str(error), self.module, self.inputs)}"
        ) from error


def described(inputs: Any) -> str:
    """Types and shapes of what went in.

    >>> described({"input_ids": torch.ones(2, 3, dtype=torch.long), "scale": 1.0})
    'input_ids int64 [2, 3]'
    """
    if isinstance(inputs, dict):
        return ", ".join(
            f"{name} {described(value)}" for name, value in inputs.items() if any(True for _ in leaves(value))
        )
    found = [f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in leaves(inputs)]
    return ", ".join(found) or f"type {type(inputs).__name__}"


def remedy(text: str, module: nn.Module, inputs: Any) -> str:
    """What to do about an error, by what it says."""
    for pattern, found in REMEDIES.items():
        if re.search(pattern, text, re.IGNORECASE):
            return found(module, inputs)
    return "run it on such a batch by itself to see where; the cause is in its own code, or in what the loader gives"


def _one_sample(module: nn.Module, inputs: Any) -> str:
    return (
        "batch norm needs two values or more of each channel in training, and this batch has one sample: choose a "
        "batch_size that leaves no last batch of one, or give your DataLoader drop_last=True"
    )


def _type(module: nn.Module, inputs: Any) -> str:
    own = sorted({str(each.dtype).removeprefix("torch.") for each in module.parameters()})
    given = sorted({str(each.dtype).removeprefix("torch.") for each in leaves(inputs)})
    return (
        f"its parameters are {', '.join(own) or 'none'}, the batch is {', '.join(given)}: let the loader give that "
        f"type (x.to(torch.{own[0] if own else 'float32'})), or convert the model"
    )


def _ids(module: nn.Module, inputs: Any) -> str:
    rows = [each.num_embeddings for each in module.modules() if isinstance(each, nn.Embedding)]
    ids = [int(each.max()) for each in leaves(inputs) if _whole(each)]
    if not rows or not ids:
        return "an index of the batch is out of range; check what the loader gives against the sizes of the model"
    return (
        f"the largest id of the batch is {max(ids)}, its embeddings hold {', '.join(map(str, rows))}: give the model "
        "as many rows as the tokenizer has ids, or the tokenizer that it was made with"
    )


def _whole(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() and value.dtype is not torch.bool and value.numel() > 0
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu"


def _shape(module: nn.Module, inputs: Any) -> str:
    return (
        "it was made for inputs of another shape: compare the shape of one batch of the loader (batch, channels, "
        "height, width; or batch, features) with that of its first layer, and give each side the size that it takes"
    )


def _device(module: nn.Module, inputs: Any) -> str:
    return (
        "a tensor that is neither parameter nor buffer stayed behind when the module was moved: register it with "
        "register_buffer, or make it on the device of the inputs"
    )


def _arguments(module: nn.Module, inputs: Any) -> str:
    return (
        "a model of a text task is called by keywords (input_ids, attention_mask, and what else the loader gives), all "
        "others with one tensor: wrap it in a module whose forward takes these"
    )


REMEDIES: dict[str, Callable[[nn.Module, Any], str]] = {
    r"more than 1 (value|spatial element)": _one_sample,
    r"same device|on device": _device,
    r"unexpected keyword|missing \d+ required|positional argument": _arguments,
    r"index out of range|out of bounds|device-side assert": _ids,
    r"same dtype|scalar type|dtype|should be the same|type .* but": _type,
    r"shape|size|channels|dimension|dims": _shape,
}
"""By what an error says, in this order: what to do."""


def _of_decoct(error: BaseException) -> bool:
    """Whether the error was raised by a line of decoct's own, as by one of its assertions."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("decoct.")

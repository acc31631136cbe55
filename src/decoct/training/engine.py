"""Engine: device, precision and processes, on accelerate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from decoct.errors import RecipeError, ResourceError
from decoct.outputs import Batch

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Where and in which precision training runs.

    `device` "auto" (CUDA where there is one), "cpu" or "cuda"; `precision` "no" (as the parameters are), "bf16" or
    "fp16" (CUDA only, with a loss scale, which waits on the device once a step); `processes` as `accelerate launch`
    or torchrun started them. Gradients are summed over processes by `descend`, so a model needs no wrapper.

    >>> Engine("cpu").device
    device(type='cpu')
    """

    def __init__(self, device: str = "auto", precision: str = "no") -> None:
        from accelerate import PartialState

        if device not in ("auto", "cpu", "cuda"):
            raise RecipeError(f"device is {device!r}; allowed: auto, cpu, cuda")
        if precision not in ("no", *_TYPES):
            raise RecipeError(f"precision is {precision!r}; allowed: no, bf16, fp16")
        if device == "cuda" and not torch.cuda.is_available():
            raise ResourceError("device is cuda and torch finds none here; use device: cpu or auto")
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        started = PartialState(cpu=kind == "cpu")  # one for the whole Python process: its device is the first caller's
        self.processes: int = started.num_processes
        self.rank: int = started.process_index
        self.device = torch.device(kind, started.local_process_index) if kind == "cuda" else torch.device("cpu")
        self.precision = precision
        if precision == "fp16" and self.device.type != "cuda":
            raise ResourceError(f"precision is fp16 and the device is {self.device.type}; use bf16 or no")
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which models run in this precision."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.precision])

    def move(self, batch: Batch) -> Batch:
        """The batch on the device; batches are collated on the CPU."""
        return batch if self.device.type == "cpu" else batch.to(self.device)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`, scaled in fp16."""
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sums gradients over processes, in one transfer a type; an absent gradient counts as 0."""
        if self.processes == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for each in parameters:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
            kinds.setdefault(each.dtype, []).append(each.grad)
        for gradients in kinds.values():
            flat = torch.cat([each.reshape(-1) for each in gradients])
            torch.distributed.all_reduce(flat)
            parts = flat.split([each.numel() for each in gradients])
            for gradient, part in zip(gradients, parts):
                gradient.copy_(part.view_as(gradient))

    def totals(self, counts: Sequence[Mapping[str, Tensor | float]]) -> dict[str, Tensor | float]:
        """Items of each term over the batches of a window and over all processes."""
        names = list(counts[0])
        totals: dict[str, Tensor | float] = {name: sum(count[name] for count in counts) for name in names}
        if self.processes == 1:
            return totals
        table = torch.stack([torch.as_tensor(totals[name], device=self.device, dtype=torch.float64) for name in names])
        torch.distributed.all_reduce(table)
        return dict(zip(names, table.unbind()))

    def state_dict(self) -> dict[str, Any]:
        """The loss scale of fp16; empty otherwise."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a loss scale."""
        if self.scaler is not None:
            self.scaler.load_state_dict(dict(state))

"""Engine: device, precision and processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from decoct.data.parts import Padding
from decoct.errors import RecipeError, ResourceError
from decoct.models.modes import SwitchedOff
from decoct.outputs import Batch
from decoct.training.processes import ONE, Processes
from decoct.training.sharding import is_sharded, local, shard
from decoct.training.synchronised import has_batch_statistics, synchronised

SQUARES = "~squares"
_CARRIERS = (torch.float64, torch.float32)
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Where and in which precision training runs.

    `device` "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" or "mps"; `precision` "no" (as the parameters
    are), "bf16" or "fp16" (CUDA only, with a loss scale, which waits on the device once a step); `processes` those that
    are `joined`.
    Gradients are summed over processes by the update, so a model needs no wrapper; on CUDA each process has the GPU of
    its local rank.

    >>> Engine("cpu").device
    device(type='cpu')
    """

    def __init__(self, device: str = "auto", precision: str = "no", processes: Processes = ONE) -> None:
        kind = found_device(device)
        if precision not in ("no", *_TYPES):
            raise RecipeError(f"precision is {precision!r}; allowed: no, bf16, fp16")
        self.group, self.processes, self.rank = processes, processes.count, processes.rank
        self.device = _gpu(processes, kind) if kind.type == "cuda" else kind
        self.synchronises = self.sharded = False
        self._squares: Tensor | None = None
        self.precision = precision
        if precision == "fp16" and self.device.type != "cuda":
            raise ResourceError(f"precision is fp16 and the device is {self.device.type}; use bf16 or no")
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which models run in this precision."""
        if self.precision == "no":
            return nullcontext()
        found = torch.autocast(self.device.type, dtype=_TYPES[self.precision])
        if self.device.type == "cpu" and torch.backends.mkldnn.is_available() and not _has_bf16():
            return _native(found)
        return found

    def move(self, batch: Batch) -> Batch:
        """The batch on the device; batches are collated on the CPU."""
        return batch if self.device.type == "cpu" else batch.to(self.device)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`, scaled in fp16; RecipeError where it has none."""
        if not loss.requires_grad:
            raise RecipeError(
                "the loss has no gradient, so nothing would be learned: the student's parameters are all frozen "
                "(requires_grad is False), or its forward detaches what it gives; unfreeze some, or mend the forward"
            )
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()

    def prepare(self, modules: Iterable[nn.Module]) -> None:
        """Before training in several processes: whether batch statistics must be taken over all of them."""
        self.synchronises = self.processes > 1 and has_batch_statistics(modules)

    def shard(self, module: nn.Module) -> None:
        """Spreads the module's parameters over the processes; see `sharding.shard`."""
        if self.scaler is not None:
            raise RecipeError("sharding is fsdp and precision fp16, whose loss scale it does not have; use bf16 or no")
        shard(module, self.group, self.device)
        self.sharded = True

    def whole_batch(self, batch: Batch) -> AbstractContextManager[Any]:
        """The context in which batch normalisation sees the samples of all processes, a Padding not counted."""
        return synchronised(self.group, self.synchronises, counts=not isinstance(batch, Padding))

    def sum_gradients(self, parameters: Iterable[Tensor], numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums gradients over processes, in one transfer a type, and gives `numbers`, without shape, summed likewise.

        A gradient that is absent here counts as 0, and one that is absent in all processes stays so. Those of sharded
        parameters are summed already; the sum of their squares over all processes is kept for `total_norm`.
        """
        if self.processes == 1:
            return dict(numbers)
        every = list(parameters)
        if self.sharded:
            numbers = {**numbers, SQUARES: _squares([each for each in every if is_sharded(each)], self.device)}
        whole = [each for each in every if not is_sharded(each)]
        absent = [place for place, each in enumerate(whole) if each.grad is None]
        carrier = next((kind for kind in _CARRIERS if any(each.dtype == kind for each in whole)), torch.float64)
        shown = [each.detach().to(self.device, carrier, copy=True).reshape(()) for each in numbers.values()]
        present = torch.ones(len(whole), dtype=carrier, device=self.device)
        if absent:
            present[absent] = 0.0
        kinds: dict[torch.dtype, list[Tensor]] = {carrier: [*shown, present]}
        for each in whole:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
            kinds.setdefault(each.dtype, []).append(each.grad)
        for tensors in kinds.values():
            self._sum(tensors)
        if absent:  # only who lacks a gradient has to look
            somewhere = present.tolist()
            for place in absent:
                if not somewhere[place]:
                    whole[place].grad = None
        summed = dict(zip(numbers, shown))
        self._squares = summed.pop(SQUARES, None)
        return summed

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        """Sums tensors of one type over processes, in place and in one transfer."""
        flat = torch.cat([each.reshape(-1) for each in tensors])
        self.group.sum(flat)
        for each, part in zip(tensors, flat.split([each.numel() for each in tensors])):
            each.copy_(part.view_as(each))

    def checked(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """What must be finite, the same in all processes: the gradients, or their squares' sum where sharded."""
        if self._squares is None:
            return list(gradients)
        return [self._squares.clone(), *(each for each in gradients if not is_sharded(each))]

    def clip(self, gradients: Sequence[Tensor], most: float) -> None:
        """Scales gradients down, in place, to a total norm of `most` over all of them and all processes."""
        norm = get_total_norm([each for each in gradients if not is_sharded(each)])
        if self._squares is not None:
            norm = (norm.square() + self._squares).sqrt()
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for each in gradients:
            local(each).mul_(factor.to(each.device, each.dtype))

    def totals(self, counts: Sequence[Mapping[str, Tensor | float]]) -> dict[str, Tensor | float]:
        """Items of each term over the batches of a window and over all processes."""
        names = list(counts[0])
        totals: dict[str, Tensor | float] = {name: sum(count[name] for count in counts) for name in names}
        if self.processes == 1:
            return totals
        table = torch.stack([torch.as_tensor(totals[name], device=self.device, dtype=torch.float64) for name in names])
        self.group.sum(table)
        return dict(zip(names, table.unbind()))

    def state_dict(self) -> dict[str, Any]:
        """The loss scale of fp16; empty otherwise."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a loss scale."""
        if self.scaler is not None:
            self.scaler.load_state_dict(dict(state))


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_NATIVE = SwitchedOff(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled)


@contextmanager
def _native(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Autocast by torch's own kernels alone: processors without AVX-512 have no LSTM of bfloat16 in oneDNN."""
    with _NATIVE, context:
        yield


def _squares(parameters: Sequence[Tensor], device: torch.device) -> Tensor:
    found = [local(each.grad).double().square().sum() for each in parameters if each.grad is not None]
    return torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64, device=device)


def found_device(name: str) -> torch.device:
    """The device of a setting: auto (CUDA where there is one), cpu, cuda, a numbered GPU as cuda:1, or mps.

    RecipeError for another word, ResourceError for one that is not there.

    >>> found_device("cpu")
    device(type='cpu')
    """
    word, _, number = name.partition(":")
    numbered = word == "cuda" and number.isascii() and number.isdigit()
    if name not in ("auto", "cpu", "cuda", "mps") and not numbered:
        raise RecipeError(f"device is {name!r}; allowed: auto, cpu, cuda, a numbered GPU as cuda:1, mps")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ResourceError("device is mps and torch finds no Apple GPU here; use device: cpu or auto")
        return torch.device("mps")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if word == "cuda" and not count:
        raise ResourceError(f"device is {name} and torch finds no GPU here; use device: cpu or auto")
    if numbered and int(number) >= count:
        there = "cuda:0 alone" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ResourceError(f"device is {name} and torch finds {there} here; use one of them, or device: cpu")
    if numbered:
        return torch.device("cuda", int(number))
    return torch.device("cuda" if name == "cuda" or (name == "auto" and count) else "cpu")


def _gpu(processes: Processes, wanted: torch.device) -> torch.device:
    """The GPU that is wanted by its number; else that of this process's local rank."""
    if wanted.index is not None:
        if processes.several:
            raise RecipeError(
                f"device is {wanted}, one GPU for {processes.count} processes; use device: cuda, one each"
            )
        torch.cuda.set_device(wanted)  # kernels that Triton starts go there
        return wanted
    count = torch.cuda.device_count()
    if processes.several and processes.local_rank >= count:
        raise ResourceError(
            f"process {processes.rank} is number {processes.local_rank + 1} on a machine with {count} GPUs; start one "
            "process for each GPU, or use device: cpu"
        )
    if processes.several:
        torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda", processes.local_rank)

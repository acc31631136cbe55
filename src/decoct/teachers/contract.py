"""The teacher contract: eval mode, frozen, unchanged, and everything put back at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from decoct.errors import TeacherChanged


@contextmanager
def frozen(module: nn.Module, device: torch.device | str | None = None) -> Iterator[nn.Module]:
    """`module` on `device`, in eval mode all through and with no parameter that requires a gradient.

    When the body ends, parameters and buffers must be as they were at its start: TeacherChanged names those that are
    not. Modes, requires_grad and device are put back, also after an exception.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> with frozen(net) as teacher:
    ...     teacher[1].training, teacher[0].weight.requires_grad
    (False, False)
    >>> net[1].training, net[0].weight.requires_grad
    (True, True)
    """
    modes = [(each, each.training) for each in module.modules()]
    flags = [(each, each.requires_grad) for each in module.parameters()]
    home = _home(module)
    try:
        if device is not None:
            module.to(device)
        module.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        before = checksums(module)
        yield module
        _compare(module, before)
    finally:
        if device is not None and home is not None:
            module.to(home)
        for each, training in modes:
            each.training = training
        for parameter, required in flags:
            parameter.requires_grad_(required)


def checksums(module: nn.Module) -> dict[str, str | tuple[int, ...]]:
    """A checksum of each parameter and buffer, also of buffers that are not saved, by `parameter NAME`, `buffer NAME`.

    On the CPU SHA-256 over the bytes; on an accelerator two sums of the bytes read as integers, one of them weighted by
    position, fetched in one transfer.
    """
    named: dict[str, Tensor] = {f"parameter {name}": each for name, each in module.named_parameters()}
    named |= {f"buffer {name}": each for name, each in module.named_buffers()}
    found: dict[str, str | tuple[int, ...]] = {}
    waiting: dict[str, Tensor] = {}
    for name, tensor in named.items():
        raw = _raw(tensor)
        if raw.device.type == "cpu":
            found[name] = hashlib.sha256(raw.numpy().data).hexdigest() + str(tuple(tensor.shape))
        else:
            waiting[name] = _sums(raw)
    if waiting:
        numbers = torch.stack(list(waiting.values())).tolist()
        found |= {name: (*sums, *named[name].shape) for name, sums in zip(waiting, numbers)}
    return found


def _raw(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8, device=tensor.device)


def _sums(raw: Tensor) -> Tensor:
    wide = next(dtype for dtype in (torch.int32, torch.int16, torch.uint8) if len(raw) % dtype.itemsize == 0)
    words = raw.view(wide)
    weights = torch.arange(len(words), dtype=torch.int32, device=raw.device).remainder_(65521).add_(1)
    return torch.stack([words.sum(dtype=torch.int64), (words * weights).sum(dtype=torch.int64)])


def _compare(module: nn.Module, before: Mapping[str, str | tuple[int, ...]]) -> None:
    after = checksums(module)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not names:
        return
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise TeacherChanged(
        f"the teacher {type(module).__name__} changed while it taught: {shown}; its forward pass writes to them, or "
        "something trains it. Its targets are not those of one model. Copy the module (copy.deepcopy) where it is "
        "shared, or make its forward pass leave its state alone in eval mode"
    )


def _home(module: nn.Module) -> torch.device | None:
    devices = {each.device for each in (*module.parameters(), *module.buffers())}
    return devices.pop() if len(devices) == 1 else None

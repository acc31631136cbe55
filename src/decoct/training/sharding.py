"""Sharding: a student whose parameters, gradients and optimizer state are spread over the processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.training.processes import Processes, same_start


def shard(module: nn.Module, processes: Processes, device: torch.device) -> None:
    """Spreads a module's parameters over the processes, in place: each block by itself, then what is left.

    A block is an item of a Sequential or ModuleList with parameters. Parameters are put together for the forward and
    backward pass of their block; gradients are summed, not averaged, over the processes. RecipeError in one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not processes.several:
        raise RecipeError("sharding is fsdp and there is one process; start several with --nproc, or leave it out")
    same_start([module], processes)
    mesh = init_device_mesh(device.type, (processes.count,))
    for each in (*_blocks(module), module):
        fully_shard(each, mesh=mesh)
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.set_gradient_divide_factor(1.0)
            each.set_force_sum_reduction_for_comms(True)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The innermost items of lists that have parameters, each once."""
    seen: set[int] = set()
    for parent in module.modules():
        if not isinstance(parent, nn.Sequential | nn.ModuleList):
            continue
        for item in parent.children():
            inner = any(isinstance(each, nn.Sequential | nn.ModuleList) and len(each) for each in item.modules())
            if not inner and id(item) not in seen and any(True for _ in item.parameters()):
                seen.add(id(item))
                yield item


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; of one that is not spread, the whole.

    >>> local(torch.ones(2))
    tensor([1., 1.])
    """
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return tensor.to_local()


class Sharded:
    """A sharded module as a part of the State: its state dict is whole in the first process, empty in the others."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Any]:
        """The whole weights and buffers, on the CPU; called by all processes."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(self.module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Spreads the first process's `state`; called by all processes."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.module, dict(state), options=options)


class ShardedOptimizer:
    """The optimizer of sharded and other modules as a part of the State; as `Sharded`, by the names of parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer, modules: nn.Module) -> None:
        self.optimizer, self.modules = optimizer, modules

    def state_dict(self) -> dict[str, Any]:
        """The whole state, on the CPU; called by all processes."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        if not self.optimizer.state:  # torch would take a step to have one
            return {"begun": False}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {"begun": True, **get_optimizer_state_dict(self.modules, self.optimizer, options=options)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Spreads the first process's `state`; called by all processes."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        if not state["begun"]:
            self.optimizer.state.clear()
            return
        whole = {name: each for name, each in state.items() if name != "begun"}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_optimizer_state_dict(self.modules, self.optimizer, whole, options=options)

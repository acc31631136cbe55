"""State, all that a checkpoint holds, and the random state that belongs to it."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from decoct.errors import RecipeError
from decoct.training.packing import pack, unpack
from decoct.training.processes import Processes
from decoct.training.sharding import Sharded


@runtime_checkable
class Stateful(Protocol):
    """What can be checkpointed: a module, an optimizer, a Source, an average of weights."""

    def state_dict(self) -> Any:
        """The state as nested plain data and tensors."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Goes back to a state."""


class State(Mapping[str, Stateful]):
    """All that is checkpointed, by name: student, optimizer, criterion (for its learned terms).

    `fit` adds the source, the best weights, the random state and its own position. The teacher does not belong here.

    >>> state = State(student=nn.Linear(1, 1, bias=False))
    >>> list(state.state_dict()["student"])
    ['weight']
    """

    def __init__(self, **parts: Stateful) -> None:
        for name, part in parts.items():
            if not isinstance(part, Stateful):
                raise RecipeError(f"state {name}: {type(part).__name__} has no state_dict and load_state_dict")
        self._parts = parts

    def __getitem__(self, name: str) -> Stateful:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def modules(self) -> list[nn.Module]:
        """The parts that are torch modules, or sharded ones."""
        found = (part.module if isinstance(part, Sharded) else part for part in self._parts.values())
        return [part for part in found if isinstance(part, nn.Module)]

    def state_dict(self) -> dict[str, Any]:
        """The state of each part."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts each part back; RecipeError where the state is that of another set of parts or of other shapes."""
        if set(state) != set(self._parts):
            raise RecipeError(
                f"the checkpoint holds {', '.join(sorted(state))}, this run has {', '.join(sorted(self._parts))}; "
                "remove the work folder to start anew"
            )
        for name, part in self._parts.items():
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = f"the checkpoint's {name} does not fit this run ({error}); remove the work folder"
                raise RecipeError(f"{reason} to start anew") from error


class Randomness:
    """The state of the global random generators: torch (CPU, and CUDA where it runs), NumPy, Python."""

    def state_dict(self) -> dict[str, Any]:
        """All generators as they stand."""
        version, numbers, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "numpy": np.random.get_state(),
            "python": (version, np.array(numbers, dtype=np.uint32), gauss),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts all generators back; warns where the number of CUDA devices is another."""
        torch.set_rng_state(state["torch"].cpu())
        np.random.set_state(state["numpy"])
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers.tolist()), gauss))
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
        elif state["cuda"]:
            warnings.warn(
                f"the checkpoint holds the random state of {len(state['cuda'])} CUDA devices, here are "
                f"{torch.cuda.device_count()}: random numbers drawn there will differ",
                stacklevel=2,
            )


class EachRandomness:
    """The random state of each of several processes, all in one checkpoint; of one process as it is.

    Process 0 draws what one process would; the others are seeded from its state and their rank, so that no two draw
    the same dropout masks. Loaded in another number of processes, those without a state of their own are seeded so.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes, self.own = processes, Randomness()

    def spread(self) -> None:
        """Seeds this process's generators by its rank; those of the first stay."""
        if self.processes.first:
            return
        seed = int(torch.randint(2**31, ())) + self.processes.rank
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """In the first process all states, which a checkpoint keeps; in the others its own, to go back to."""
        if not self.processes.several:
            return self.own.state_dict()
        data, tensors = pack(self.own.state_dict())
        every = self.processes.gathered(json.dumps([data, save(tensors).hex()]).encode())
        if not self.processes.first:
            return {"own": self.own.state_dict()}
        states = [json.loads(each) for each in every]
        return {"processes": [unpack(data, load(bytes.fromhex(raw))) for data, raw in states]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts all generators back."""
        if "own" in state:
            self.own.load_state_dict(state["own"])
            return
        states, rank = state.get("processes", [state]), self.processes.rank
        self.own.load_state_dict(states[rank if rank < len(states) else 0])
        if rank >= len(states):
            self.spread()


class Best:
    """The best weights of the student so far, by one validation score."""

    def __init__(self, name: str, mode: str) -> None:
        self.name = name
        self.mode = mode
        self.step: int | None = None
        self.scores: dict[str, float] = {}
        self.weights: dict[str, Any] = {}

    def offer(self, student: Stateful, scores: Mapping[str, float], step: int) -> bool:
        """Keeps a copy of the weights where the score is better than all before; the first of equals stays."""
        score = scores[self.name]
        if score != score or (self.step is not None and not self._better(score, self.scores[self.name])):
            return False
        weights = student.state_dict()
        self.weights = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in weights.items()}
        self.scores, self.step = dict(scores), step
        return True

    def _better(self, score: float, other: float) -> bool:
        return score > other if self.mode == "max" else score < other

    def state_dict(self) -> dict[str, Any]:
        """Step, scores and weights."""
        return {"step": self.step, "scores": self.scores, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to an earlier best."""
        self.step, self.scores, self.weights = state["step"], dict(state["scores"]), dict(state["weights"])

"""Writing: a causal model goes on with ids, token by token, reading each once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.modes import evaluating


@dataclass(frozen=True)
class Limits:
    """How a model writes: at most `tokens` more, until `end`; the likeliest at `temperature` 0, else drawn from
    softmax(logits / temperature), among the `top_k` likeliest where it is given."""

    tokens: int = 32
    temperature: float = 0.0
    top_k: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.temperature < 0 or (self.top_k is not None and self.top_k < 1):
            raise RecipeError(
                f"limits: tokens {self.tokens} (1 or more), temperature {self.temperature:g} (0 or more), top_k "
                f"{self.top_k} (1 or more, or None)"
            )


@runtime_checkable
class Stepping(Protocol):
    """A network that goes on from a state: each id is read once."""

    @property
    def longest(self) -> int:
        """How many ids it can read."""

    def step(self, input_ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits `[B, V]` of what follows, and the state with these ids in it."""


def written(module: nn.Module, ids: Tensor, limits: Limits, seed: int = 0) -> Tensor:
    """Prompts `[B, L]` and what the model goes on with, int64 `[B, L + n]`, n at most `limits.tokens`.

    Sample i draws from a generator seeded by (seed, i), so that batch mates do not matter. After `end` a sample is
    filled with it. RecipeError for a network that has no step, or for more ids than it can read.
    """
    if not isinstance(module, Stepping):
        raise RecipeError(f"{type(module).__name__} cannot write: it has no step(input_ids, past); take small_gpt")
    if ids.shape[1] + limits.tokens > module.longest:
        raise RecipeError(
            f"limits.tokens: {ids.shape[1]} ids and {limits.tokens} more, and the model reads {module.longest} at "
            "most; give shorter prompts, or fewer tokens"
        )
    generators = [torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63) for i in range(len(ids))]
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    found, given = ids, ids
    past: Any = None
    with evaluating(module), torch.no_grad():
        for _ in range(limits.tokens):
            logits, past = module.step(given, past)
            given = _chosen(logits, limits, generators).to(ids.device).unsqueeze(1)
            if limits.end is not None:
                given = torch.where(ended.unsqueeze(1), limits.end, given)
                ended = ended | (given.squeeze(1) == limits.end)
            found = torch.cat([found, given], 1)
            if bool(ended.all()):
                break
    return found


def _chosen(logits: Tensor, limits: Limits, generators: list[torch.Generator]) -> Tensor:
    if limits.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float().cpu() / limits.temperature
    if limits.top_k is not None and limits.top_k < logits.shape[-1]:
        least = logits.topk(limits.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    chances = logits.softmax(-1)
    return torch.cat([torch.multinomial(row, 1, generator=each) for row, each in zip(chances, generators)])

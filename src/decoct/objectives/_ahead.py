"""Losses over hidden states and their head whose gradients are taken in the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decoct.errors import RecipeError
from decoct.objectives._head import Gradients, Wanted
from decoct.outputs import Head

Sums = tuple[tuple[Tensor, ...], Gradients]
"""The values of a pass over the logits, the first of which is the loss, and the gradients of that one."""


class TakenAhead(torch.autograd.Function):
    """Values whose gradients were taken on the way; the backward pass only scales them.

    `apply(hidden, weight, bias, run)`, run(wanted) -> Sums; only the first value has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, run: Callable[[Wanted], Sums]
    ) -> tuple[Tensor, ...]:
        values, found = run((ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]))
        pairs = ((found.hidden, hidden), (found.weight, weight), (found.bias, bias))
        ctx.save_for_backward(*(None if a is None or b is None else a.to(b.dtype) for a, b in pairs))
        ctx.mark_non_differentiable(*values[1:])
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RecipeError(
                "a second derivative is asked for (create_graph=True) of a loss over hidden states and their head, and "
                "the first is taken in the forward pass; use the plain loss on the whole logits there"
            )
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        one = not again and gradients[0].device.type == "cpu" and gradients[0].item() == 1
        by_hidden, by_weight, by_bias = (
            each if each is None or one else each * gradients[0] if again else each.mul_(gradients[0])
            for each in ctx.saved_tensors
        )
        return by_hidden, by_weight, by_bias, None


def wanted_of(hidden: Tensor, head: Head) -> Wanted:
    """Whether hidden states, weight and bias take gradients."""
    return hidden.requires_grad, head.weight.requires_grad, head.bias is not None and head.bias.requires_grad


def run_ahead(hidden: Tensor, head: Head, run: Callable[[Wanted], Sums]) -> tuple[Tensor, ...]:
    """The values of `run`, the first with a gradient where one is wanted."""
    if torch.is_grad_enabled() and any(wanted_of(hidden, head)):
        found: tuple[Tensor, ...] = TakenAhead.apply(hidden, head.weight, head.bias, run)
        return found
    return run((False, False, False))[0]

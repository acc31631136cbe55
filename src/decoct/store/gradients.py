"""The gradient that a decoded row gives a student against that of the exact divergence."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from decoct.store.codecs.base import Codec, Decoded, checked


def kl_gradient(decoded: Decoded, student: Tensor) -> Tensor:
    """Gradient of KL(p ‖ q) at temperature 1 by the student's logits `[N, C]`, float64 `[N, C]`.

    Dense: q − p. Bucket: q_i − p_i for the kept classes, q_j · (1 − P / Q) for each class of the tail, where P and Q
    are the masses of the tail. Draws: q − p for the kept classes, each draw standing for P / n.
    """
    q = student.double().softmax(-1)
    if isinstance(decoded, Tensor):
        return q - decoded.double().softmax(-1)
    mass = decoded.rest[:, :1].double().exp()
    if decoded.drawn is not None:
        p = torch.zeros_like(q).scatter(-1, decoded.ids, decoded.log_probs.double().exp())
        shares = (mass / decoded.drawn.shape[1]).expand(decoded.drawn.shape)
        return q - p.scatter_add(-1, decoded.drawn, shares)
    tail = q.scatter(-1, decoded.ids, 0.0)
    p = tail * (mass / tail.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny))
    return q - p.scatter(-1, decoded.ids, decoded.log_probs.double().exp())


def gradient_error(codec: Codec, logits: Tensor, student: Tensor, seen: np.ndarray) -> float:
    """Mean over rows of ‖g − g*‖ / ‖g*‖: g the gradient after `codec`, g* that of the exact KL.

    Logits of teacher and student `[N, C]`; `seen` uint64 `[N]` keys the draws.
    """
    exact = kl_gradient(checked(logits), student)
    decoded = codec.decode(codec.encode(logits, seen), logits.shape[-1])
    error = (kl_gradient(decoded, student) - exact).norm(dim=-1)
    return (error / exact.norm(dim=-1)).mean().item()

"""Stored top-k targets: the error that each way to take the tail makes in the student's gradient, and what it stores.

    python benchmarks/tails.py [--classes 32000] [--k 64] [--rows 64]

Relative L2 error of the gradient of the mean KL by the student's logits against that of all the teacher's classes,
‖g − exact‖ / ‖exact‖, after writing and reading with the store's own codec (uint8 log-probabilities, packed ids). Two
synthetic teachers: "flat", normal logits of deviation 2, of which the k largest hold little; "peaked", logits that fall
with the rank as 1.3 · log(rank) with noise, nearer to a language model's. The student is the teacher with normal noise
of deviation 1 on each logit. "renormalised" divides the kept probabilities by their sum, against the student's whole
softmax; "both renormalised" compares softmaxes over the kept classes alone; "tail dropped" leaves the tail's terms out.
"bias" is the error of the mean gradient over 64 stores with other draws; what is unbiased shrinks to about 1/8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from _shared import command, origin, parser, table, write
from torch import Tensor

from decoct.functional import forward_kl_loss, top_k_kl_loss
from decoct.outputs import TopK
from decoct.store.codecs.top_k import TopKCodec

REPEATS = 64
TAILS = {"bucket": (1.0, 4.0), "uniform": (1.0, 4.0), "sample": (1.0,)}


def teacher(kind: str, rows: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, classes, generator=generator)
    if kind == "flat":
        return 2 * noise
    ranked = -1.3 * torch.arange(1, classes + 1).log()
    shuffled = torch.stack([ranked[torch.randperm(classes, generator=generator)] for _ in range(rows)])
    return shuffled + 0.5 * noise


def gradient(loss: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def stored(logits: Tensor, codec: TopKCodec, seed: int = 0) -> Tensor | TopK:
    """What is read back after the codec wrote the logits."""
    seen = np.arange(len(logits), dtype=np.uint64) + np.uint64(seed * len(logits))
    return codec.decode(codec.encode(logits, seen), logits.shape[-1])


def loss_under(target: Tensor | TopK, temperature: float) -> Callable[[Tensor], Tensor]:
    if isinstance(target, Tensor):
        return lambda student: forward_kl_loss(student, target, temperature=temperature)
    return lambda student: top_k_kl_loss(student, target, temperature=temperature)


def wrong(top: TopK) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is often done instead, at temperature 1."""
    p, renormalised = top.log_probs.exp(), top.log_probs.softmax(-1)

    def rows(student: Tensor) -> Tensor:
        return student.log_softmax(-1).gather(-1, top.ids)

    def kept(student: Tensor) -> Tensor:
        return F.kl_div(student.gather(-1, top.ids).log_softmax(-1), renormalised, reduction="batchmean")

    return {
        "renormalised teacher (wrong)": lambda s: F.kl_div(rows(s), renormalised, reduction="batchmean"),
        "both renormalised (wrong)": kept,
        "tail dropped (wrong)": lambda s: (p * (top.log_probs - rows(s))).sum(-1).mean(),
    }


def _forward_kl(logits: Tensor, temperature: float, student: Tensor) -> Tensor:
    return forward_kl_loss(student, logits, temperature=temperature)


def errors(logits: Tensor, k: int) -> dict[str, list[str]]:
    """By name: error at temperature 1, its bias, error at temperature 4."""
    student = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    exact = {t: gradient(partial(_forward_kl, logits, t), student) for t in (1.0, 4.0)}

    def error(found: Tensor, temperature: float) -> str:
        return f"{((found - exact[temperature]).norm() / exact[temperature].norm()).item():.3f}"

    found = {}
    for tail, temperatures in TAILS.items():
        codec = TopKCodec(k=k, tail=tail, draws=k)
        target = [gradient(loss_under(stored(logits, codec), t), student) for t in temperatures]
        cells = [error(each, t) for each, t in zip(target, temperatures, strict=True)]
        bias = cells[0]
        if tail == "sample":
            many = [gradient(loss_under(stored(logits, codec, i), 1.0), student) for i in range(REPEATS)]
            bias = error(torch.stack(many).mean(0), 1.0)
        found[tail] = [cells[0], bias, cells[1] if len(cells) > 1 else "refused"]
    top = TopK.of(logits, k)
    for name, loss in wrong(top).items():
        cell = error(gradient(loss, student), 1.0)
        found[name] = [cell, cell, "–"]
    return found


def main() -> None:
    made = parser(__doc__)
    for name, default in {"classes": 32_000, "k": 64, "rows": 64}.items():
        made.add_argument(f"--{name}", type=int, default=default)
    given = made.parse_args()
    lines = ["# Tails of stored top-k targets", "", " ".join((__doc__ or "").split("\n\n")[2].split()), ""]
    for kind in ("flat", "peaked"):
        logits = teacher(kind, given.rows, given.classes)
        mass = TopK.of(logits, given.k).log_probs.exp().sum(-1).mean().item()
        rows = []
        for name, cells in errors(logits, given.k).items():
            size = "–"
            if name in TAILS:
                columns = TopKCodec(k=given.k, tail=name, draws=given.k).columns(given.classes)
                count = sum(columns.values())
                size = f"{count} (1/{4 * given.classes / count:.0f})"
            rows.append((name, *cells, size))
        titles = ["tail", "error", "bias", "error at T = 4", "bytes a token (of float32 logits)"]
        note = f'"{kind}": the {given.k} largest of {given.classes:,} classes hold {mass:.0%} of the mass.'
        lines += [note, "", *table(titles, rows), ""]
    write("tails", [*lines, command("tails", given), "", origin(), ""])


if __name__ == "__main__":
    main()

"""The loss of a language-model head: time and memory of one forward and backward pass, several ways.

    python benchmarks/head_loss.py [--rounds 3] [--threads 1] [--quick] [--device cuda --dtype bfloat16]

N = 2048 tokens, hidden 512 (student) and 1024 (teacher), vocabularies of 32,000 and 128,000. Each way runs once in a
fresh process in each round, in half the rounds with the larger vocabulary (CPU time with one thread, else wall time); a
ratio is the median over rounds of the time over that of the matrix products alone: both sides' logits and the two
products of the student's gradient, in chunks of 256 tokens. Extra memory is the rise of the process's peak over its
inputs (on CUDA of what is allocated). TRL's and Liger's losses run where they can be imported. `--quick`: a tiny size
that only shows that it runs.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from _shared import command, cpu_or_wall, origin, paired, parser, table, write
from torch import Tensor

from decoct.functional import Labels, linear_kd_loss
from decoct.meters.memory import _peak, _reset_peak
from decoct.outputs import TopK

BARE = "matrix products alone"
NAIVE = "whole logits, KL"


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor
    weight: Tensor
    teacher: Tensor
    teacher_weight: Tensor
    target: Tensor
    top: TopK


def inputs(given: Namespace, classes: int) -> Inputs:
    tokens = 64 if given.quick else 2048
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, given.dtype)

    def make(rows: int, width: int, scale: float = 1.0) -> Tensor:
        made = torch.empty(rows, width, dtype=dtype)
        for part in made.split(4096):
            part.copy_(scale * torch.randn(part.shape, generator=generator))
        return made.to(given.device)

    hidden, teacher = make(tokens, 512), make(tokens, 1024)
    weight, teacher_weight = make(classes, 512, 2 * 512**-0.5), make(classes, 1024, 2 * 1024**-0.5)
    target = torch.randint(0, classes, (tokens,), generator=generator).to(given.device)
    few = TopK.of((teacher[:64] @ teacher_weight.T).float(), 64)
    top = few.each(lambda each: each.repeat(-(-tokens // 64), 1)[:tokens])
    return Inputs(hidden.requires_grad_(), weight.requires_grad_(), teacher, teacher_weight, target, top)


def products(x: Inputs, chunk: int = 256) -> None:
    with torch.no_grad():
        size = min(chunk, len(x.hidden)), len(x.weight)
        own, theirs = x.hidden.new_empty(size), x.hidden.new_empty(size)
        x.hidden.grad, x.weight.grad = torch.empty_like(x.hidden), torch.zeros_like(x.weight)
        for start in range(0, len(x.hidden), chunk):
            part = slice(start, start + chunk)
            torch.mm(x.hidden[part], x.weight.T, out=own)
            torch.mm(x.teacher[part], x.teacher_weight.T, out=theirs)
            torch.mm(own, x.weight, out=x.hidden.grad[part])
            x.weight.grad.addmm_(own.T, x.hidden[part])


def both(x: Inputs) -> tuple[Tensor, Tensor]:
    return x.hidden @ x.weight.T, x.teacher @ x.teacher_weight.T


def naive(x: Inputs) -> Tensor:
    own, theirs = both(x)
    log_q, log_p = own.float().log_softmax(-1), theirs.float().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def trl_loss(x: Inputs, beta: float) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    own, theirs = both(x)
    loss: Tensor = GKDTrainer.generalized_jsd_loss(own[None], theirs[None], beta=beta, reduction="sum")
    return loss / len(own)


def liger_loss(x: Inputs, beta: float) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=beta, compiled=x.hidden.is_cuda)
    found: Tensor = loss(x.hidden, x.weight, x.teacher, x.teacher_weight, x.target)
    return found


def ours(x: Inputs, **options: Any) -> Tensor:
    return linear_kd_loss(x.hidden, x.weight, x.teacher, x.teacher_weight, **options)


def ways(given: Namespace) -> dict[str, Callable[[Inputs], Tensor | None]]:
    """Ways by name; those of libraries that cannot be imported are left out."""
    found: dict[str, Callable[[Inputs], Tensor | None]] = {BARE: products, NAIVE: naive}
    with_trl = given.measure or importable("trl.experimental.gkd")
    with_liger = given.measure or importable("liger_kernel.chunked_loss")
    if with_trl:
        found["TRL, generalized_jsd_loss, beta 0"] = lambda x: trl_loss(x, 0.0)
    if with_liger:
        found["Liger, chunked, beta 0"] = lambda x: liger_loss(x, 0.0)
    found["linear_kd_loss, forward_kl"] = ours
    found["the same and hard cross-entropy"] = lambda x: ours(x, labels=Labels(x.target))
    found["the same, top-64 stored targets"] = lambda x: linear_kd_loss(x.hidden, x.weight, x.top)
    if given.device == "cuda":
        found["the same, Triton kernel"] = lambda x: ours(x, backend="triton")
    if with_liger:
        found["Liger, chunked, beta 0.5"] = lambda x: liger_loss(x, 0.5)
    found["linear_kd_loss, jsd"] = lambda x: ours(x, divergence="jsd")
    return found


def importable(module: str) -> bool:
    words = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def measured(given: Namespace) -> None:
    """Seconds, the rise of this process's peak, and the loss of one pass, as JSON."""
    way = ways(given)[given.measure]
    once(way, inputs(Namespace(quick=True, dtype=given.dtype, device=given.device), 128))
    x, cuda, clock = inputs(given, given.classes), given.device == "cuda", cpu_or_wall(given.threads)
    if cuda:
        once(way, x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    elif hasattr(ctypes.CDLL(None), "malloc_trim"):  # what was freed is given back, so that its reuse counts
        ctypes.CDLL(None).malloc_trim(0)
    before = torch.cuda.memory_allocated() if cuda else _reset_peak()
    begun = clock()
    loss = once(way, x)
    if cuda:
        torch.cuda.synchronize()
    seconds = clock() - begun
    rise = (torch.cuda.max_memory_allocated() if cuda else _peak()) - before
    print(json.dumps({"seconds": seconds, "mib": rise / 2**20, "loss": None if loss is None else loss.item()}))


def once(way: Callable[[Inputs], Tensor | None], x: Inputs) -> Tensor | None:
    x.hidden.grad = x.weight.grad = None
    loss = way(x)
    if loss is not None:
        loss.backward()
    return loss


def alone(given: Namespace, name: str, classes: int) -> dict[str, float]:
    """What `measured` says in a fresh process."""
    words = [sys.executable, __file__, "--measure", name, "--classes", str(classes), "--threads", str(given.threads)]
    words += ["--device", given.device, "--dtype", given.dtype, *(["--quick"] if given.quick else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{classes:,} {name}: {found}", file=sys.stderr, flush=True)
    return found


def page(given: Namespace, classes: int) -> list[str]:
    names = list(ways(given))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(given.rounds if classes < 100_000 else max(given.rounds // 2, 1)):
        for name in names[turn:] + names[:turn]:
            found[name].append(alone(given, name, classes))

    def column(name: str, key: str) -> list[float]:
        return [each[key] for each in found[name]]

    rows = []
    weight = classes * 512 * getattr(torch, given.dtype).itemsize / 2**20
    naive_mib = max(statistics.median(column(NAIVE, "mib")), 1)
    for name in names:
        seconds, mib = column(name, "seconds"), max(statistics.median(column(name, "mib")), 1)
        ratio = paired(seconds, column(BARE, "seconds"), how="ratio").text(".2f")
        shares = (
            [] if name == BARE else [f"1/{naive_mib / mib:.1f}", f"1/{(naive_mib - weight) / max(mib - weight, 1):.1f}"]
        )
        loss = "" if name == BARE or "top-64" in name else f"{found[name][0]['loss']:.4f}"
        rows.append((name, f"{statistics.median(seconds):.2f}", ratio, f"{mib:.0f}", *(shares or ["", ""]), loss))
    titles = [
        "way",
        "seconds",
        "times the products",
        "extra MiB",
        "of naive",
        "both without the weight's gradient",
        "loss",
    ]
    note = f"The gradient of the student's weight, which every way must give, is {weight:.0f} MiB of the extra memory."
    return [f"## V = {classes:,}", "", *table(titles, rows), "", note, ""]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--quick", action="store_true")
    made.add_argument("--classes", type=int, default=0, help="one vocabulary, instead of 32,000 and 128,000")
    made.add_argument("--measure", default=None, help="one way, in this process")
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    if given.measure:
        measured(given)
        return
    lines = ["# The loss of a language-model head", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    for classes in (512,) if given.quick else (given.classes,) if given.classes else (32_000, 128_000):
        lines += page(given, classes)
    shown = Namespace(**{key: value for key, value in vars(given).items() if key not in ("measure", "classes")})
    lines += [command("head_loss", shown), "", origin(), ""]
    if given.quick or given.classes:
        print("\n".join(lines))
    else:
        write("head_loss" if given.device == "cpu" else f"head_loss_{given.device}", lines)


if __name__ == "__main__":
    main()

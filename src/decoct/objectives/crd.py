"""Contrastive representation distillation: one sample's two features meet, others stay apart; with a memory."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.objectives._features import PairedObjective, PairNetwork
from decoct.objectives._keyed import batch_keys
from decoct.objectives._logits import Temperature
from decoct.objectives._numeric import full_precision, item_mean, promote, refuse_temperature, shape, unit
from decoct.objectives._shapes import Embedding, Kept, Loss
from decoct.objectives.adapters import Average
from decoct.objectives.base import Probe, Suits
from decoct.outputs import Batch
from decoct.training.clock import Clock
from decoct.training.schedules import at


@full_precision
def contrastive_loss(
    student: Embedding,
    teacher: Embedding,
    negatives: Tensor,
    *,
    temperature: float = 0.07,
    log_normalizer: Loss | None = None,
    keep: Kept | None = None,
) -> Loss:
    """Mean over B of −log(r₊/(r₊ + K)) − Σ_k log(K/(r_k + K)), r = exp(⟨a, b⟩/T)/Z.

    `student` `[B, D]`, `teacher` `[B, D]` the positives, `negatives` `[K, D]` of the teacher, or `[B, K, D]`; all are
    L2-normalised here. r₊ compares with the positive, r_k with each negative. `keep` `[B, K]` bool leaves negatives
    out; K is then the number kept in that row, and a row without any adds 0. Z: the mean of exp(⟨a, b⟩/T) over all
    pairs of the batch, without gradient, or exp(`log_normalizer`). No gradient into teacher and negatives. Not 0 at
    student == teacher. Memory: B·K scores; negatives `[K, D]` are shared by the batch, where the authors' code draws
    K for each sample. That code (`CRDLoss`) takes Z from its first batch, sums this value over both directions, and
    adds 1e-7 to the denominators.

    Tian et al. 2020, arXiv 1910.10699, equation 18.

    >>> x = torch.eye(2)
    >>> near = contrastive_loss(x, x, -x, temperature=1.0)
    >>> far = contrastive_loss(x, -x, x, temperature=1.0)
    >>> near.item() < far.item()
    True
    """
    refuse_temperature("contrastive_loss", temperature)
    a, b, c = promote(student, teacher, negatives)
    if a.ndim != 2 or a.shape != b.shape or c.ndim not in (2, 3) or c.shape[-1] != a.shape[1]:
        raise RecipeError(
            f"contrastive_loss: student {shape(student)}, teacher {shape(teacher)} and negatives {shape(negatives)}; "
            f"allowed: [B, D], [B, D] and [K, D] or [B, K, D]"
        )
    near, apart = _scores(unit(a), unit(b.detach()), unit(c.detach()), temperature)
    if keep is None:
        keep = torch.ones_like(apart, dtype=torch.bool)
    if keep.shape != apart.shape:
        raise RecipeError(f"contrastive_loss: keep {shape(keep)} and scores {shape(apart)}; the shapes must be equal")
    return _contrast(near, apart, keep, log_normalizer)


@full_precision
def _scores(a: Tensor, b: Tensor, c: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """⟨a, b⟩/T `[B]` and ⟨a, c⟩/T `[B, K]` of vectors of length 1."""
    a, b, c = promote(a, b, c)
    apart = a @ c.T if c.ndim == 2 else torch.einsum("bd,bkd->bk", a, c)
    return (a * b).sum(-1) / temperature, apart / temperature


def _contrast(near: Tensor, apart: Tensor, keep: Tensor, log_normalizer: Tensor | None) -> Tensor:
    """The loss of scores ⟨a, b⟩/T with the positives `[B]` and the negatives `[B, K]`."""
    if log_normalizer is None:
        log_normalizer = log_mean(near, apart, keep)
    count = keep.sum(-1).to(apart.dtype).log()
    positive = F.softplus(count - (near - log_normalizer))
    negative = F.softplus(apart - log_normalizer - count.clamp(min=0).unsqueeze(-1))
    return item_mean(positive + torch.where(keep, negative, 0.0).sum(-1))


def log_mean(near: Tensor, apart: Tensor, keep: Tensor) -> Tensor:
    """log of the mean of exp over the scores kept, without gradient; 0-dim."""
    scores = torch.cat([near.unsqueeze(1), apart.masked_fill(~keep, -torch.inf)], 1).detach()
    return scores.flatten().logsumexp(0) - (len(near) + keep.sum()).to(scores.dtype).log()


class CRD(PairedObjective):
    """Draws a sample's features of both nets together and others apart, with a memory of both (Tian 2020).

    `dim`: width of the learned embeddings; `bank`: places of the memory; a sample's place comes from its content key,
    so it is found again in any order, epoch and run, and gives way to another of the same place. `momentum`: how much
    of the old embedding stays when a sample is seen again. `by_class`: samples of the same label are no negatives. All
    of the memory serves as negatives. Maps and tokens are averaged over positions first. Batches without keys fill the
    memory in turn, and older embeddings of a sample then count among its negatives. The value is `contrastive_loss`
    both ways, as in the authors' code (weight 0.8 there). `temperature`: similarities are divided by it, a number or
    schedule.
    """

    use: ClassVar[str] = "crd"
    auto: ClassVar[Literal["stages", "embedding", "none"]] = "embedding"
    reshaped: ClassVar[bool] = False
    splittable: ClassVar[bool] = False
    temperature: Temperature = 0.07
    dim: int = Field(default=128, ge=1, le=65_536)
    bank: int = Field(default=16384, ge=1, le=1 << 24)
    momentum: float = Field(default=0.5, ge=0, lt=1)
    by_class: bool = False

    def suits(self) -> Suits:
        """Any answers, unless it reads class ids."""
        return "classes" if self.by_class else "any"

    def network(self, student: Tensor, teacher: Tensor, probe: Probe, path: str) -> PairNetwork:
        own, theirs = (each.shape[1] if each.ndim == 4 else each.shape[-1] for each in (student, teacher))
        return Contrast(self, own, theirs)


class Contrast(PairNetwork):
    """Embeddings of both sides, and the memory, which is part of the checkpoint."""

    keys: Tensor
    labels: Tensor
    filled: Tensor
    own: Tensor
    theirs: Tensor
    log_normalizers: Tensor
    turn: Tensor

    def __init__(self, objective: CRD, own: int, theirs: int) -> None:
        super().__init__()
        self.objective = objective
        size, dim = objective.bank, objective.dim
        self.average = Average()
        self.embed_own, self.embed_theirs = nn.Linear(own, dim), nn.Linear(theirs, dim)
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("own", torch.zeros(size, dim))
        self.register_buffer("theirs", torch.zeros(size, dim))
        self.register_buffer("log_normalizers", torch.full((2,), torch.nan))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        self._settled = [False, False]
        self.register_load_state_dict_post_hook(_unsettle)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        s = unit(self.embed_own(self._vector(student)))
        t = unit(self.embed_theirs(self._vector(teacher.to(student.dtype))))
        keys = batch_keys(batch, s.device)
        places = self._places(len(s), keys, s.device)
        known = torch.zeros_like(places, dtype=torch.bool)
        if keys is not None:
            known = self.filled[places] & (self.keys[places] == keys)
        near_own, near_theirs = (
            torch.where(known.unsqueeze(1), bank[places].to(s.dtype), each.detach())
            for bank, each in ((self.own, s), (self.theirs, t))
        )
        labels = self._labels(batch, s.device)
        if self.training:
            self._remember(places, known, keys, labels, s.detach(), t.detach())
        keep = self.filled & (torch.arange(self.objective.bank, device=s.device) != places.unsqueeze(1))
        if labels is not None:
            keep = keep & ((self.labels != labels.unsqueeze(1)) | (labels < 0).unsqueeze(1))
        temperature = at(self.objective.temperature, clock)
        ways = ((s, near_theirs, self.theirs), (t, near_own, self.own))
        total = s.new_zeros(())
        for i, (anchor, other, bank) in enumerate(ways):
            # All of these are of length 1 already.
            near, apart = _scores(anchor, other, bank, temperature)
            total = total + _contrast(near, apart, keep, self._normalizer(i, near, apart, keep))
        return total

    def _vector(self, x: Tensor) -> Tensor:
        result: Tensor = x if x.ndim == 2 else self.average(x)
        return result

    def _places(self, size: int, keys: Tensor | None, device: torch.device) -> Tensor:
        if keys is None:
            return (self.turn + torch.arange(size, device=device)).remainder(self.objective.bank)
        return keys.remainder(self.objective.bank)

    def _labels(self, batch: Batch, device: torch.device) -> Tensor | None:
        if not self.objective.by_class:
            return None
        target = batch.target
        if not isinstance(target, Tensor) or target.is_floating_point() or target.ndim != 1:
            raise RecipeError(f"{self.objective.label}: by_class needs one class id for each sample")
        return target.to(device).long()

    def _remember(
        self, places: Tensor, known: Tensor, keys: Tensor | None, labels: Tensor | None, s: Tensor, t: Tensor
    ) -> None:
        """Writes the batch into new buffers, so that a graph that holds the old ones stays whole.

        Of several samples with one place the last in the batch wins, and all of them write what it has.
        """
        order = torch.arange(len(places), device=places.device)
        last = torch.zeros(self.objective.bank, dtype=torch.int64, device=places.device)
        winner = last.scatter_reduce(0, places, order, "amax")[places]
        kept, momentum = known.unsqueeze(1), self.objective.momentum
        for name, fresh in (("own", s), ("theirs", t)):
            bank = self.get_buffer(name)
            fresh = fresh.to(bank.dtype)
            mixed = torch.where(kept, unit(momentum * bank[places] + (1 - momentum) * fresh), fresh)
            setattr(self, name, bank.index_copy(0, places, mixed[winner]))
        self.filled = self.filled.index_fill(0, places, True)
        if keys is not None:
            self.keys = self.keys.index_copy(0, places, keys[winner])
        if labels is not None:
            self.labels = self.labels.index_copy(0, places, labels[winner])
        self.turn = (self.turn + len(places)).remainder(self.objective.bank)

    def _normalizer(self, way: int, near: Tensor, apart: Tensor, keep: Tensor) -> Tensor:
        """That of the first batch of training, as in the authors' code; before it, this batch's own."""
        stored = self.log_normalizers[way]
        if self._settled[way]:
            return stored
        found = torch.where(stored.isnan(), log_mean(near, apart, keep).to(stored.dtype), stored)
        if self.training:
            place = torch.arange(2, device=found.device) == way
            self.log_normalizers = torch.where(place, found, self.log_normalizers)
            self._settled[way] = True
        return found


def _unsettle(module: nn.Module, keys: object) -> None:
    """What was loaded may have no normaliser yet, so it is looked at again."""
    assert isinstance(module, Contrast)
    module._settled = [False, False]

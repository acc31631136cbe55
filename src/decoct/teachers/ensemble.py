"""Ensemble: several teachers as one, by a weighted mean of their probabilities or logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.outputs import Batch, Dense, Outputs, Predictor
from decoct.teachers.classes import in_full
from decoct.teachers.combining import Combination, Member, Setting

LEAST = 1e-12
ROUNDS = 25
LONGEST = 3.0
HELD_OUT = 2048
"""At most so many labelled samples decide on weights."""
FOR_NUMBERS = "the task predicts numbers; set average to 'logits' and weights to 'equal', 'validation' or numbers"
Weights = Literal["equal", "validation", "confidence", "entropy", "learned"]


def mean_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """Σ_k w_k · logits_k of `[K, *B, C]`, weights `[*B, K]` or `[K]` divided by their sum: a geometric mean."""
    shares = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("k...c,...k->...c", logits, shares.expand(*logits.shape[1:-1], len(logits)).to(logits.dtype))


def mean_probabilities(logits: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T · log q of `[K, *B, C]`, where q is the mean of p_k = softmax(logits_k / T) with weights `[*B, K]` or `[K]`.

    softmax of the result at T is q. Where all know all classes, q = Σ_k w_k p_k / Σ_k w_k. A class that teacher k does
    not know is -inf in all its logits and gets no say from it: q maximises Σ_k w_k Σ_c p_k(c) log(q(c) / q(known to
    k)), so each teacher speaks of the odds among its classes alone. How groups of classes that no teacher links stand
    to each other is open; those of one teacher each get equal parts. -inf for a class that none knows.

    Vongkulbhisal et al. 2019, arXiv 1904.06062, section 3.2 (their cross-entropy method; found here by `reach`).

    >>> a, b = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> mean_probabilities(torch.stack([a, b]), torch.tensor([3.0, 1.0])).exp()
    tensor([[0.8000, 0.2000]])
    """
    known = ~torch.isneginf(logits).flatten(1, -2).all(1)
    rows = logits.shape[1:-1]
    log_w = weights.clamp(min=LEAST).log().expand(*rows, len(logits)).to(logits.dtype)
    log_w = log_w - log_w.logsumexp(-1, keepdim=True)
    if bool(known.all()):
        log_p = torch.log_softmax(logits / temperature, -1)
        return temperature * (log_w.movedim(-1, 0).unsqueeze(-1) + log_p).logsumexp(0)
    columns = known.any(0).nonzero().squeeze(1)
    known = known[:, columns]
    log_p, log_w = torch.log_softmax(logits[..., columns].double() / temperature, -1), log_w.double().log_softmax(-1)
    mixture = (log_w.movedim(-1, 0).unsqueeze(-1) + log_p).logsumexp(0)
    factors = log_w + reach(mixture, log_w, known)
    total = torch.where(known.T, factors.unsqueeze(-2), -torch.inf).logsumexp(-1)
    q = torch.full_like(logits[0], -torch.inf)
    q[..., columns] = (temperature * torch.log_softmax(mixture - total, -1)).to(q.dtype)
    return q


def reach(mixture: Tensor, log_w: Tensor, known: Tensor) -> Tensor:
    """`[*B, K]`, u_k = -log q(known to k) up to a constant, by Newton's method in ROUNDS rounds at most.

    With S = Σ_k w_k p_k (`said`, its log, `[*B, C]`), the q wanted is S(c) / Σ_{k knows c} w_k e^{u_k} at the minimum
    of the convex function Σ_c S(c) log Σ_{k knows c} w_k e^{u_k} - Σ_k w_k u_k. Both logs in float64, since the
    function is flat along a constant; differentiable in both.
    """
    weight = mixture.exp()

    def step(u: Tensor) -> Tensor:
        shares = torch.where(known.T, (log_w + u).unsqueeze(-2), -torch.inf).softmax(-1)
        mass = weight.unsqueeze(-1) * shares
        gradient = mass.sum(-2) - log_w.exp()
        curvature = torch.diag_embed(mass.sum(-2)) - mass.mT @ shares
        ridge = 1e-12 * torch.eye(len(known), dtype=torch.float64, device=u.device)
        return torch.linalg.solve(curvature.detach() + ridge, -gradient.unsqueeze(-1)).squeeze(-1)

    u = torch.zeros_like(log_w)
    with torch.no_grad():
        for _ in range(ROUNDS):
            move = step(u).clamp(-LONGEST, LONGEST)
            u = u + move
            if move.device.type == "cpu" and float(move.abs().max()) < 1e-9:  # elsewhere asking would wait
                break
    return u + step(u).clamp(-LONGEST, LONGEST)


class Ensemble(Combination):
    """Several teachers answer as one: the weighted mean of their probabilities, or of their logits.

    `weights`: "equal", or numbers by role, or "validation" (by accuracy on the held-out samples whose class a teacher
    knows, for numbers by the inverse of the error), "confidence" (for each sample the teacher's highest probability),
    "entropy" (for each sample 1 / entropy, Kwon et al. 2020) or "learned" (those under which the held-out labels are
    most likely). Held out is the validation split, or the labelled training samples where there is none. `average`:
    "probabilities" at `temperature` (the student sees exactly this mean at the same temperature of `kd`), or "logits",
    a geometric mean, for teachers that know all classes. Classes are matched by name; a teacher has no say in a class
    that it does not know.
    """

    use: ClassVar[str] = "ensemble"
    weights: Weights | dict[str, float] = "equal"
    average: Literal["probabilities", "logits"] = "probabilities"
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: Weights | dict[str, float]) -> Weights | dict[str, float]:
        for role, weight in value.items() if isinstance(value, dict) else ():
            if not 0 < weight < float("inf"):
                raise ValueError(f"{role} has {weight}; allowed: numbers above 0. Leave out a teacher that has no say")
        return value

    def problem_with(self, *, distribution: bool) -> str | None:
        """A mean of probabilities, or weights by them, for a task that predicts numbers."""
        return None if distribution or not self._reads_classes else FOR_NUMBERS

    @property
    def _reads_classes(self) -> bool:
        return self.average == "probabilities" or self.weights in ("confidence", "entropy", "learned")

    def join(self, members: Mapping[str, Member], setting: Setting) -> Predictor:
        self._refuse(members, setting)
        fixed = self._fixed(members, setting)

        def predict(batch: Batch) -> Outputs:
            with torch.no_grad():
                logits = stacked(members, batch, setting.outputs)
                weights = self._by_sample(logits) if fixed is None else fixed.to(logits)
                shares = weights / weights.sum(-1, keepdim=True)
                shown = shares.expand(len(batch), len(members)) if shares.ndim < 2 else shares
                return Outputs(Dense(self._mean(logits, weights)), values={"weights": shown})

        return predict

    def _mean(self, logits: Tensor, weights: Tensor) -> Tensor:
        if self.average == "logits":
            return mean_logits(logits, weights)
        return mean_probabilities(logits, weights, temperature=self.temperature)

    def _refuse(self, members: Mapping[str, Member], setting: Setting) -> None:
        if isinstance(self.weights, dict) and set(self.weights) != set(members):
            wrong = sorted(set(self.weights) ^ set(members))
            raise RecipeError(
                f"combine.weights: {', '.join(wrong)}: give one number for each teacher; "
                f"{did_you_mean(wrong[0], members)}"
            )
        partly = [role for role, each in members.items() if each.known is not None]
        if self.average == "logits" and partly:
            raise RecipeError(
                f"combine.average is 'logits', and {', '.join(partly)} does not know all classes; use 'probabilities'"
            )
        problem = self.problem_with(distribution=setting.distribution)
        if problem is not None:
            raise RecipeError(f"combine: {problem}")

    def _by_sample(self, logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits / self.temperature, -1)
        if self.weights == "confidence":
            return log_p.amax(-1).exp().movedim(0, -1)
        entropy = -(log_p.exp() * log_p.masked_fill(torch.isneginf(log_p), 0.0)).sum(-1)
        return (1 / entropy.clamp(min=1e-6)).movedim(0, -1)

    def _fixed(self, members: Mapping[str, Member], setting: Setting) -> Tensor | None:
        if isinstance(self.weights, dict):
            return torch.tensor([self.weights[role] for role in members])
        if self.weights == "equal":
            return torch.ones(len(members))
        if self.weights == "validation":
            return torch.tensor([_worth(role, each, setting) for role, each in members.items()])
        if self.weights == "learned":
            return self._learned(members, setting)
        return None

    def _learned(self, members: Mapping[str, Member], setting: Setting) -> Tensor:
        batches = list(_first(setting.held_out()))
        known = [batch.target >= 0 for batch in batches]
        mixture = [stacked(members, batch, setting.outputs) for batch in batches]
        logits = torch.cat([each[:, kept] for each, kept in zip(mixture, known)], 1).double()
        target = torch.cat([batch.target[kept] for batch, kept in zip(batches, known)]).to(logits.device)
        theta = torch.zeros(len(members), dtype=torch.float64, device=logits.device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            log_q = torch.log_softmax(self._mean(logits, torch.softmax(theta, 0)) / self.temperature, -1)
            likely = log_q.gather(-1, target.unsqueeze(-1)).clamp(min=-30)
            value = -likely.mean() + 1e-6 * theta.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return torch.softmax(theta.detach(), 0)


def stacked(members: Mapping[str, Member], batch: Batch, outputs: int) -> Tensor:
    """Logits `[K, *B, outputs]` of all members, -inf where one does not know the class."""
    answers = {role: (each.predict(batch).logits, each.known) for role, each in members.items()}
    found = []
    for role, (logits, known) in answers.items():
        if logits is None:
            raise RecipeError(f"combine: {role} gives no logits")
        full = in_full(logits.float(), known, outputs)
        if full.shape[-1] != outputs:
            raise RecipeError(
                f"combine: {role} gives {full.shape[-1]} logits, the student {outputs}; its classes are not known by "
                "name, so they cannot be mapped. Use an artifact of decoct, which names them"
            )
        found.append(full)
    return torch.stack(found)


def _worth(role: str, member: Member, setting: Setting) -> float:
    """What a teacher's answers on the held-out samples are worth: more is better."""
    if setting.error is not None:
        return 1 / max(setting.error(member.predict), LEAST)
    right = seen = 0
    for batch in setting.held_out():
        logits = stacked({role: member}, batch, setting.outputs)[0]
        target = batch.target.to(logits.device)
        known = target >= 0
        if member.known is not None:
            known &= torch.isin(target, torch.tensor(member.known, device=target.device))
        right += int((logits.argmax(-1) == target)[known].sum())
        seen += int(known.sum())
    if not seen:
        raise DataError(f"combine.weights: no held-out sample has a label that {role} knows; give weights by role")
    return max(right / seen, LEAST)


def _first(batches: Iterable[Batch]) -> Iterable[Batch]:
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        if seen >= HELD_OUT:
            return

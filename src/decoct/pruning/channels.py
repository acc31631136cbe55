"""Channels: whole channels, hidden units and attention heads removed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt
from torch import nn

from decoct.errors import RecipeError
from decoct.models.kinds import without_weights
from decoct.pruning._atoms import Axis, Group, Units
from decoct.pruning._attention import attentions, cut_heads, with_slim_attention
from decoct.pruning._checked import cut_checked
from decoct.pruning._graph import groups_and_shapes, groups_of
from decoct.pruning._rounds import InRounds
from decoct.pruning._scores import Scores, choose, keep_count
from decoct.pruning._sparsity import GroupLasso, ScaleLasso
from decoct.training.callback import Callback
from decoct.training.compression import Change, Compressed, Evidence, protected


class Channels(InRounds):
    """Removes whole channels of convolutions, linear and recurrent layers, and heads of attention.

    `ratio`: the share of channels that goes; what stays is rounded to a multiple of `round_to`, and a layer of no more
    than that is left alone. `score`: l1, l2 (norm of all weights that go with a channel), taylor (weight times
    gradient), bn_scale. `scope`: layer (the same share of each) or global (the lowest of all). Outputs are protected.
    `sparsity`: weight of the group lasso (of L1 on batch-norm scales for bn_scale) where `recover` is joint or
    sparsify. Li et al. 2017; Liu et al. 2017; Molchanov et al. 2019; Fang et al. 2023.
    """

    use: ClassVar[str] = "channels"
    positional: ClassVar[tuple[str, ...]] = ("ratio",)
    score: Literal["l1", "l2", "taylor", "bn_scale"] = "l2"
    scope: Literal["layer", "global"] = "layer"
    round_to: PositiveInt = 8
    sparsity: float = Field(default=1e-3, gt=0)

    def apply(self, module: nn.Module, evidence: Evidence) -> Compressed:
        keep = dict.fromkeys(sorted(protected(module, self.protect)), "protected")
        work = with_slim_attention(copy.deepcopy(module), keep)
        heads = cut_heads(work, Scores(work, self._head_score, evidence), self.ratio, keep, self.first_size)
        groups, shapes = groups_and_shapes(work, evidence, keep)
        scored = self._scored(Scores(work, self.score, evidence), groups)
        chosen, notes = self._chosen(groups, scored)
        result, failed = cut_checked(work, [(groups[i], units) for i, units in chosen.items()], evidence, shapes)
        notes |= {list(chosen)[number]: reason for number, reason in failed.items()}
        changes = [*heads, *_changes(groups, notes, work, result)]
        if all(each.before == each.after == self.first_size(each.path, each.before) for each in changes) and not (
            self.waits and scored
        ):
            raise RecipeError(_nothing(changes, self.ratio, without_weights(work)))
        return Compressed(result.train(module.training), tuple(changes))

    @property
    def _head_score(self) -> Literal["l1", "l2", "taylor"]:
        return "l2" if self.score == "bn_scale" else self.score

    def callback(self, module: nn.Module, evidence: Evidence, until: float) -> Callback:
        keep = dict.fromkeys(protected(module, self.protect), "protected")
        groups = [each for each in groups_of(module, evidence, keep) if not each.frozen and each.size > self.round_to]
        lasso = ScaleLasso if self.score == "bn_scale" else GroupLasso
        found = lasso(module, groups, self.sparsity)
        if not found.parts:
            raise RecipeError(f"scheme {self.use}: nothing here can train towards sparsity with score {self.score}")
        return found

    def _first(self, group: Group) -> int:
        """How many units the group had before the first of several rounds."""
        for axis in group.roots:
            channels = len(Units.made(group.axes[axis]).flat)
            first = self.first_size(_path(axis), channels)
            if first != channels:
                return first * group.size // channels
        return group.size

    def _scored(self, scores: Scores, groups: Sequence[Group]) -> dict[int, np.ndarray]:
        """Scores of the groups that may shrink, by number."""
        found = {i: scores.of(each) for i, each in enumerate(groups) if not each.frozen}
        return {i: each for i, each in found.items() if each is not None}

    def _chosen(
        self, groups: Sequence[Group], scored: Mapping[int, np.ndarray]
    ) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """The units that go, and why groups stay as they are, by number of the group."""
        notes = {i: each.frozen for i, each in enumerate(groups)}
        for i, each in enumerate(groups):
            if not each.frozen and i not in scored:
                notes[i] = f"score {self.score} does not apply: no batch norm goes with it"
            elif not each.frozen and keep_count(self._first(each), self.ratio, self.round_to) >= each.size:
                notes[i] = f"{each.size} channels, kept in multiples of {self.round_to}"
        if not scored:
            return {}, notes
        members = [groups[i] for i in scored]
        firsts = [self._first(each) for each in members]
        units = choose(members, list(scored.values()), self.ratio, self.scope, self.round_to, firsts)
        return dict(zip(scored, units)), notes


def _path(axis: Axis) -> str:
    return axis.tensor.rpartition(".")[0]


def _changes(groups: Sequence[Group], notes: Mapping[int, str], before: nn.Module, after: nn.Module) -> list[Change]:
    """One for each layer that has channels of its own, but for those inside of attention."""
    inside = {axis.tensor for each in attentions(before) for axis in each.group.axes if axis.dim == 0}
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    made: dict[str, Change] = {}
    for i, group in enumerate(groups):
        for axis in group.roots:
            if axis.tensor in inside:
                continue
            path = _path(axis)
            sizes = old[axis.tensor].shape[axis.dim], new[axis.tensor].shape[axis.dim]
            note = notes.get(i, "") if sizes[0] == sizes[1] else ""
            if path not in made or note:
                made[path] = Change(path, "channels", *sizes, note)
    return list(made.values())


def _nothing(changes: Sequence[Change], ratio: float, parametrized: Sequence[str]) -> str:
    reasons = "; ".join(f"{each.path}: {each.note}" for each in changes[:5] if each.note)
    more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
    if parametrized:
        named = ", ".join(parametrized[:5])
        more += f"; weights made of other tensors, to be baked first (remove_parametrizations): {named}"
    return (
        f"nothing can be pruned at ratio {ratio:g} ({reasons or 'no layer has channels'}{more}); "
        "lower round_to, raise ratio or protect less"
    )

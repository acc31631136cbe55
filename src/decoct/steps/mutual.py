"""MutualLearning: peers that are trained together and teach each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator
from torch import nn

from decoct.artifact import Artifact, Draft
from decoct.errors import RecipeError
from decoct.objectives.base import Objective, as_objective
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.kd import KD
from decoct.objectives.layers import choose_layers
from decoct.objectives.task_loss import TaskLoss
from decoct.outputs import Needs, Outputs
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs
from decoct.steps.learning.building import build_criterion, build_student
from decoct.steps.learning.lesson import Lesson, lesson
from decoct.steps.learning.saving import Student, save_part, save_student, scores_of
from decoct.steps.learning.settings import Learning
from decoct.training.mutual import Mutual


class MutualLearning(Learning):
    """Trains several models together; each learns from the labels and from what the others say (deep mutual learning).

    The inputs are models: "model", whose score selects and which the artifact holds, and any number of peers, which
    are saved as its parts under their roles. Two roles may name one model: they start from other weights. `objective`:
    what each learns with each other as its teacher, the mean over the others; `samples` as in distill.

    Zhang et al. 2018, arXiv 1706.00384.
    """

    use: ClassVar[str] = "mutual"
    rehearsed: ClassVar[bool] = False
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("spec", "model"), "*": ("spec", "model")}

    objective: Annotated[Objective, Choice("decoct.objectives"), BeforeValidator(as_objective)] = TaskLoss() + KD(
        temperature=1.0
    )
    samples: Literal["all", "labelled"] = "all"

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        if len(inputs) < 2:
            raise RecipeError("inputs: mutual learning needs a peer beside model; add one, as peer: NAME of a model")
        with lesson(self, inputs, context, {"student": Needs()}) as at_work:
            peers = _peers(self, inputs, at_work)
            update, modules, criteria = self._update(peers, at_work)
            history = at_work.fit(
                update,
                at_work.source(self.samples),
                _scoring(peers, at_work),
                student=modules,
                optimizer=update.optimizer,
                criterion=criteria,
            )

        def others(draft: Draft) -> None:
            for name, peer in peers.items():
                if name != "model":
                    save_part(draft, name, peer, history, context, scores_of(name, history))

        return save_student(peers["model"], history, context, scores=scores_of("", history), extra=others)

    def _decided(self, pair: tuple[str, str], peers: Mapping[str, Student], at_work: Lesson) -> Objective:
        """The objective of one peer under another, its layers chosen."""

        def look(role: str, needs: Needs) -> Outputs:
            peer = peers[pair[0] if role == "student" else pair[1]]
            return replace(at_work, student=peer).look("student", needs)

        return choose_layers(self.objective, ["peer"], look)

    def _update(self, peers: Mapping[str, Student], at_work: Lesson) -> tuple[Mutual, nn.ModuleDict, nn.ModuleList]:
        task = at_work.context.task
        pairs = [(own, other) for own in peers for other in peers if other != own]
        objectives = {pair: self._decided(pair, peers, at_work) for pair in pairs}
        wanted = dict.fromkeys(peers, Needs())
        for (own, other), objective in objectives.items():
            needs = needs_of(objective, ["peer"], at_work.context.task.answer.needs)
            wanted[own] |= needs["student"]
            wanted[other] |= needs["peer"]
        forwards = {name: each.forward(task, wanted[name]) for name, each in peers.items()}

        def criterion(own: str, other: str) -> Criterion:
            modules = {"student": peers[own].module, other: peers[other].module}
            objective = objectives[own, other]
            built = build_criterion(objective, task, at_work.batch, forwards[own], {other: forwards[other]}, modules)
            return built.to(at_work.engine.device)

        criteria = {own: {other: criterion(own, other) for other in peers if other != own} for own in peers}
        modules = nn.ModuleDict({name: each.module for name, each in peers.items()})
        learned = nn.ModuleList(each for own in criteria.values() for each in own.values())
        update = Mutual(
            forwards,
            criteria,
            at_work.optimizer(modules, learned),
            at_work.engine,
            max_grad_norm=self.max_grad_norm,
            lr=self.optimizer.lr,
        )
        return update, modules, learned


def _peers(step: Learning, inputs: Inputs, at_work: Lesson) -> dict[str, Student]:
    peers = {"model": at_work.student}
    for role, value in inputs.items():
        if role != "model":
            peers[role] = build_student(value, at_work.context.task, step.side, at_work.context.given)
            peers[role].module.to(at_work.engine.device)
    return peers


def _scoring(peers: Mapping[str, Student], at_work: Lesson) -> Callable[[], dict[str, float]]:
    """Scores of the main model under their names, those of a peer as PEER.METRIC."""
    task = at_work.context.task
    each = {name: at_work.scoring(peer.forward(task, Needs())) for name, peer in peers.items()}

    def score() -> dict[str, float]:
        found = dict(each["model"]())
        for name, scoring in each.items():
            if name != "model":
                found |= {f"{name}.{metric}": value for metric, value in scoring().items()}
        return found

    return score

"""Saving what a step trained: the student as an artifact, and further models as its parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from decoct.artifact import MANIFEST, Artifact, Draft, writing
from decoct.models.base import Model, Network
from decoct.models.saving import save_model
from decoct.outputs import Batch, Needs, Outputs
from decoct.steps.base import Context
from decoct.steps.learning.batches import few
from decoct.training.callback import CHOSEN
from decoct.training.fit import History
from decoct.training.processes import ONE
from decoct.training.soundness import counted

if TYPE_CHECKING:
    from decoct.tasks.base import Task

PROBE_SAMPLES = 4
PARTS = "parts"
"""The folder of an artifact in which further models stand, each an artifact of its own."""


STOPPED = "stopped"
"""In the meta of an artifact: why its training ended before the budget."""
LEFT_OUT = "left_out_samples"
"""Among the scores: how many samples training left out because they made numbers that are not finite."""


@dataclass(frozen=True)
class Student:
    """The module that learns, the Spec that rebuilds it, and whose preprocessing it gets."""

    module: nn.Module
    spec: Model
    side: str

    def forward(self, task: Task, needs: Needs) -> Callable[[Batch], Outputs]:
        """The predictor of this student as it is now, capturing `needs`."""
        network = self.network(task)
        return lambda batch: task.forward(network, batch, needs, self.side)

    def network(self, task: Task) -> Network:
        """The module with what reads its results."""
        return Network(self.module, self.spec, task.reading(self.side).interface)


def save_student(
    student: Student,
    history: History | None,
    context: Context,
    *,
    scores: Mapping[str, float] | None = None,
    extra: Callable[[Draft], None] = lambda draft: None,
) -> Artifact:
    """Writes the student as the step's artifact, with its scores and its log; `extra` may add files.

    `scores`: by default those of the weights that were kept. Of several processes the first writes.
    """
    kept = kept_scores(history) if scores is None else scores
    return context.written(lambda: _write_student(student, history, context, kept, extra))


def _write_student(
    student: Student,
    history: History | None,
    context: Context,
    scores: Mapping[str, float],
    extra: Callable[[Draft], None],
) -> Artifact:
    module, task = student.module.cpu().eval(), context.task
    batch = few(context, PROBE_SAMPLES)

    network = student.network(task)

    def probe(candidate: nn.Module) -> list[torch.Tensor]:
        return task.forward(replace(network, module=candidate), batch, Needs(), student.side).tensors()

    with writing(
        context.folder,
        kind="model",
        name=context.name,
        key=context.key,
        lineage=context.lineage,
        meta={"side": student.side, "seed": context.run_seed},
    ) as draft:
        save_model(
            draft,
            module,
            student.spec,
            network.interface,
            side=student.side,
            probe=probe,
            given=context.given,
        )
        draft.write_json("task.json", task.plain())
        draft.scores.update(scores)
        if history is not None and history.left_out:
            draft.scores[LEFT_OUT] = float(len(history.left_out))
            draft.meta["left_out"] = counted(history.left_out)
        if history is not None and history.stopped:
            draft.meta[STOPPED] = history.stopped
        draft.write_json("scores.json", draft.scores)
        if history is not None:
            draft.write_json("history.json", {"best": history.best, "steps": history.steps})
        if (context.work / "log.jsonl").is_file():
            shutil.copy(context.work / "log.jsonl", draft.folder / "log.jsonl")
        extra(draft)
    return Artifact.load(context.folder)


def kept_scores(history: History | None) -> dict[str, float]:
    """The figures of the weights that were kept: the best, or those of the last validation."""
    if history is None:
        return {}
    if history.best:
        return {name: score for name, score in history.best.items() if name != CHOSEN}
    validated = [record["scores"] for record in history.records if record["kind"] == "validation"]
    return {name: score for name, score in validated[-1].items() if score is not None} if validated else {}


def save_part(
    draft: Draft, name: str, student: Student, history: History | None, context: Context, scores: Mapping[str, float]
) -> None:
    """Writes a further model into an artifact that is being written, under parts/NAME."""
    assert Path(name).name == name, name
    own = replace(context, folder=draft.folder / PARTS / name, name=f"{context.name}.{name}", processes=ONE)
    save_student(student, history, own, scores=scores)


def save_chain(made: Mapping[str, Artifact], context: Context) -> Artifact:
    """The last of several artifacts as the step's own, with those before it as its parts."""
    return context.written(lambda: _write_chain(made, context))


def _write_chain(made: Mapping[str, Artifact], context: Context) -> Artifact:
    *before, last = made.values()
    with writing(
        context.folder,
        kind=last.kind,
        name=context.name,
        key=context.key,
        lineage=context.lineage,
        meta=last.meta,
    ) as draft:
        shutil.copytree(last.folder, draft.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        for name, each in zip(made, before):
            shutil.copytree(each.folder, draft.folder / PARTS / name)
        draft.scores.update(last.scores)
        for name, each in zip(made, before):
            draft.scores.update({f"{name}.{metric}": score for metric, score in each.scores.items()})
    return Artifact.load(context.folder)


def scores_of(name: str, history: History) -> dict[str, float]:
    """Of scores called "NAME.METRIC" those of one model, by metric; of the main one, "", all without a dot."""
    found = kept_scores(history)
    if not name:
        return {key: score for key, score in found.items() if "." not in key}
    return {key.removeprefix(f"{name}."): score for key, score in found.items() if key.startswith(f"{name}.")}

"""Robustness: what models are worth on clean and on attacked inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from decoct.artifact import Artifact, writing
from decoct.models.saving import load_model
from decoct.outputs import DENSE
from decoct.spec import Choice
from decoct.steps.base import Context, Inputs, Step, StepProblem
from decoct.steps.learning.batches import evaluation_batches
from decoct.steps.records import RECORDS
from decoct.steps.shipping.benchmark import finite
from decoct.training.adversarial import under_attack
from decoct.training.attacks.base import NO_CLASSES, Attack
from decoct.training.attacks.pgd import PGD
from decoct.training.engine import Engine

if TYPE_CHECKING:
    from decoct.tasks.answers.base import Answer


class Robustness(Step):
    """Scores models on clean and on attacked inputs of a split, as METRIC and attacked_METRIC.

    `attack`: what is done to raw inputs, with the labels in sight; `split`: the samples that are scored; `reseed` seeds
    a random start.
    """

    use: ClassVar[str] = "robustness"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"*": ("model",)}
    gives: ClassVar[str] = "records"

    name: str = "robustness"
    attack: Annotated[Attack, Choice("decoct.training.attacks")] = PGD()
    split: str = "test"
    reseed: int = Field(default=0, ge=0)

    def problems_with(self, answer: Answer) -> Iterator[StepProblem]:
        """Attacks on anything but classes."""
        if not answer.distribution:
            yield ("attack",), f"{self.attack.use} {NO_CLASSES}", self.attack.use

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        records = []
        for done, (name, value) in enumerate(inputs.items()):
            context.progress(done, len(inputs), f"{self.attack.use} on {name}")
            artifacts = value if isinstance(value, list | tuple) else [value]
            records.append(self._record(name, artifacts, context))
        with writing(
            context.folder, kind="records", name=context.name, key=context.key, lineage=context.lineage
        ) as draft:
            draft.write_json(RECORDS, finite({"models": records, "attack": self.attack.plain(), "split": self.split}))
        return Artifact.load(context.folder)

    def _record(self, name: str, artifacts: Sequence[Artifact], context: Context) -> dict[str, Any]:
        scored = [self._scores(each, context) for each in artifacts]
        quality = {metric: [each[metric] for each in scored] for metric in scored[0]}
        seeds = [each.meta.get("seed", context.run_seed) for each in artifacts]
        return {
            "name": name,
            "step": artifacts[0].name,
            "path": artifacts[0].folder.name,
            "split": self.split,
            "n": sum(len(batch) for batch in evaluation_batches(context, self.split)),
            "quality": {metric: float(np.mean(values)) for metric, values in quality.items()},
            "quality_sd": {m: float(np.std(v, ddof=1)) for m, v in quality.items()} if len(scored) > 1 else {},
            "seeds": seeds,
            "per_seed": [{"seed": seed, "quality": each} for seed, each in zip(seeds, scored)],
        }

    def _scores(self, artifact: Artifact, context: Context) -> dict[str, float]:
        task, side = context.task, str(artifact.meta["side"])
        device = Engine(device=context.device).device
        network = load_model(artifact, given=context.given)
        module = network.module.to(device).eval()
        forward = lambda batch: task.forward(network, batch, DENSE, side)  # noqa: E731
        batches = [batch.to(device) for batch in evaluation_batches(context, self.split)]
        robust = under_attack(self.attack, module, forward, side)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.reseed)
            under = task.score(robust, batches)
            clean = task.score(forward, batches)
        return {**clean, **{f"attacked_{metric}": value for metric, value in under.items()}}

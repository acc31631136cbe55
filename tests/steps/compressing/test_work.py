"""Scores from losses: a scheme's evidence takes an objective on features, and layers that are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from decoct.artifact import Artifact
from tiny import LEARN, PAIR, recipe

HINT = [{"use": "kd"}, {"use": "hint", "layers": {"layer1": "layer1"}}]
AUTO = [{"use": "kd"}, {"use": "attention_transfer", "layers": "auto"}]
STREAM = ["stem.0", "layer2.0.shortcut"]
"""Layers that share channels with the ends of the blocks: with them protected, a block takes and gives what it did."""


@pytest.mark.parametrize("objective", [HINT, AUTO], ids=["hint", "auto"])
@pytest.mark.parametrize("recover", ["none", "after", "layer_by_layer"])
def test_scores_come_from_an_objective_on_features(
    objective: list[dict[str, Any]], recover: str, tmp_path: Path
) -> None:
    net = {"use": "small_resnet", "width": 4, "depths": [1, 1]}
    pruned = {
        "use": "prune",
        "name": "pruned",
        "inputs": {"model": "student", "teacher": "teacher"},
        "scheme": {"use": "channels", "score": "taylor", "round_to": 2, "protect": STREAM},
        "recover": {"use": recover},
        "objective": objective,
        **LEARN,
    }
    train = {"use": "train", **LEARN, "budget": {"steps": 2}}
    steps = [
        {**train, "name": "teacher", "inputs": {"model": "net"}},
        {**train, "name": "student", "inputs": {"model": "net"}},
        pruned,
    ]
    recipe({**PAIR, "models": {"net": net}, "steps": steps}).run(tmp_path / "run")
    report = Artifact.load(tmp_path / "run" / "03-pruned").json("compression.json")
    assert report["after"]["parameters"] < report["before"]["parameters"]

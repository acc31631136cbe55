"""The step: a recipe that prunes, its report, its settings, and one saved artifact pruned by the command's function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from decoct.artifact import Artifact
from decoct.errors import RecipeError
from decoct.models.saving import load_model
from decoct.pruning.channels import Channels
from decoct.recipe.recipe import Recipe
from decoct.runner.apply import apply
from decoct.steps.compressing.prune import Prune

LEARN: dict[str, Any] = {"budget": {"steps": 4}, "batch_size": 16}


def recipe(*more: dict[str, Any]) -> Recipe:
    return Recipe.parse(
        {
            "version": 1,
            "task": {"use": "image_classification"},
            "data": {"use": "digits", "limit": 200},
            "models": {"net": {"use": "small_resnet", "width": 8, "depths": [1, 1]}},
            "steps": [{"use": "train", "name": "student", "inputs": {"model": "net"}, **LEARN}, *more],
        }
    )


@pytest.mark.parametrize(
    ("recover", "fields"),
    [
        ({"use": "after"}, {"ratio": 0.5}),
        ({"use": "iterative", "rounds": 2}, {"ratio": 0.5}),
        ({"use": "joint"}, {"ratio": 0.5}),
        ({"use": "none"}, {"scheme": {"use": "channels", "score": "taylor"}}),
    ],
)
def test_a_recipe_prunes_and_says_what_went(recover: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    step = {"use": "prune", "name": "pruned", "inputs": {"model": "student"}, "recover": recover, **LEARN}
    scheme = {"use": "channels", **fields.pop("scheme", {}), "round_to": 2, **fields}
    recipe({**step, "scheme": scheme}).run(tmp_path / "run")
    made = Artifact.load(tmp_path / "run" / "02-pruned")
    report = made.json("compression.json")
    assert report["after"]["parameters"] < 0.4 * report["before"]["parameters"]
    assert sum(each.numel() for each in load_model(made).module.parameters()) == report["after"]["parameters"]
    found = {each["path"]: (each["before"], each["after"]) for each in report["changes"]}
    assert found["layer1.0.conv1"] == (8, 4)
    assert found["head"] == (10, 10)


def test_rounds_report_the_blocks_of_the_first(tmp_path: Path) -> None:
    """Blocks that are left get new paths in each round."""
    learn = {"budget": {"steps": 3}, "batch_size": 16}
    model = {"use": "small_vit", "patch": 4, "width": 8, "heads": 2, "depth": 5}
    plain = recipe(
        {
            "use": "prune",
            "name": "pruned",
            "inputs": {"model": "student"},
            "scheme": {"use": "layers", "ratio": 0.6},
            "recover": {"use": "iterative", "rounds": 3},
            **learn,
        }
    ).plain()
    Recipe.parse({**plain, "models": {"net": model}}).run(tmp_path / "run")
    made = Artifact.load(tmp_path / "run" / "02-pruned")
    changes = made.json("compression.json")["changes"]
    assert [each["path"] for each in changes] == [f"blocks.{i}" for i in range(5)]
    assert sum(each["after"] for each in changes) == 2 == len(load_model(made).module.blocks)


def test_apply_takes_a_ratio(tmp_path: Path) -> None:
    recipe().run(tmp_path / "run")
    settings = ["ratio=0.25", "scheme.round_to=2", "scheme.use=channels", "recover={use: none}"]
    made = apply("prune", tmp_path / "run" / "01-student", tmp_path / "pruned", settings)
    changes = made.json("compression.json")["changes"]
    assert {(each["before"], each["after"]) for each in changes} == {(8, 6), (16, 12), (10, 10)}


def test_ratio_is_the_schemes_own() -> None:
    short = Prune(name="p", ratio=0.3)
    assert short == Prune(name="p", scheme=Channels(ratio=0.3))
    assert short.ratio is None
    assert short.plain()["scheme"]["ratio"] == 0.3
    assert Prune(name="p", ratio=0.3, scheme={"use": "heads"}).scheme.ratio == 0.3
    assert Prune(name="p").scheme == Channels()
    for fields, words in (
        ({"ratio": 0.3, "scheme": {"use": "channels", "ratio": 0.4}}, "ratio is 0.3 and scheme.ratio 0.4"),
        ({"ratio": 0.3, "scheme": {"use": "n_m"}}, "the scheme n_m has none"),
        ({"ratio": 1.5}, "ratio: Input should be less than 1"),
        ({"scheme": {"use": "chanels"}}, "did you mean channels"),
    ):
        with pytest.raises(RecipeError, match=words):
            Prune.parse({"name": "p", **fields})

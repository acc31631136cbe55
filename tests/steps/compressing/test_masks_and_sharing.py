"""Pruning by masks and sharing as steps of a recipe: from a teacher to files on disk, and exact continuation."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch

from decoct.models.clustered import Clustered
from decoct.models.saving import load_model
from decoct.pruning._masks import prunable
from decoct.recipe.recipe import Recipe

LEARN = {"budget": {"steps": 8}, "batch_size": 16, "log_every": 2}
BASE = {
    "task": {"use": "image_classification"},
    "data": {"use": "digits", "limit": 160},
    "models": {
        "large": {"use": "small_resnet", "width": 8},
        "small": {"use": "small_resnet", "width": 8, "depths": [3, 1]},
    },
}
TEACHER = {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **LEARN}
STUDENT = {"use": "train", "name": "student", "inputs": {"model": "small"}, **LEARN}
PAIR = {"model": "student", "teacher": "teacher"}
CUBIC = {"use": "magnitude", "ratio": 0.7, "schedule": "cubic", "begin": 0.1}
CASES = {
    "magnitude_joint": {"use": "prune", "scheme": CUBIC, "recover": {"use": "joint"}},
    "magnitude_rounds": {"use": "prune", "scheme": CUBIC, "recover": {"use": "iterative", "rounds": 2}},
    "movement_joint": {"use": "prune", "scheme": {**CUBIC, "use": "movement"}, "recover": {"use": "joint"}},
    "movement_after": {"use": "prune", "scheme": {**CUBIC, "use": "movement"}, "recover": {"use": "after"}},
    "n_m_after": {"use": "prune", "scheme": {"use": "n_m"}, "recover": {"use": "after"}},
    "codebook_after": {"use": "share", "scheme": {"use": "codebook", "clusters": 16}, "recover": {"use": "after"}},
    "layers_after": {"use": "share", "scheme": {"use": "layers"}, "recover": {"use": "after"}},
}


def recipe(*steps):
    return Recipe.parse({**copy.deepcopy(BASE), "steps": list(steps)})


def case(name, **fields):
    return {**LEARN, **CASES[name], "name": "made", "inputs": PAIR, **fields}


def zeros(module):
    weights = prunable(module).values()
    return sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with teacher and student, which each case goes on from."""
    folder = tmp_path_factory.mktemp("run")
    recipe(TEACHER, STUDENT).run(folder)
    return folder


def ran(folder, name, *more):
    return recipe(TEACHER, STUDENT, case(name), *more).run(folder)


@pytest.mark.parametrize("name", ["magnitude_joint", "magnitude_rounds", "movement_joint", "movement_after"])
def test_masks_with_a_teacher_end_at_their_ratio_in_a_plain_module(folder, name):
    run = ran(folder, name)
    made = run.artifact("made")
    module = load_model(made).module
    total = sum(each.numel() for each in prunable(module).values())
    assert zeros(module) == pytest.approx(0.7, abs=1 / total)
    assert type(module) is type(load_model(run.artifact("student")).module)
    record = made.json("compression.json")
    assert sum(each["after"] for each in record["changes"]) == total - round(0.7 * total)
    assert record["after"]["nonzero"] < 0.4 * record["before"]["nonzero"]
    before = load_model(run.artifact("student")).module.state_dict()
    assert any(not torch.equal(each[each != 0], before[k][each != 0]) for k, each in module.state_dict().items())
    assert 0 <= made.scores["accuracy"] <= 1
    assert set(made.scores) == set(run.artifact("student").scores)


def test_the_share_of_zeros_is_logged(folder):
    log = ran(folder, "magnitude_joint").artifact("made").folder / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    seen = [each["terms"]["sparsity"] for each in records if each["kind"] == "train"]
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(0.7, abs=0.01)


def test_two_of_four_holds_through_recovery(folder):
    module = load_model(ran(folder, "n_m_after").artifact("made")).module
    for name, weight in prunable(module).items():
        if weight.shape[1] % 4 == 0:
            groups = weight.detach().movedim(1, -1).reshape(-1, 4)
            assert ((groups != 0).sum(1) <= 2).all(), name
    assert zeros(module) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["codebook_after", "layers_after"])
def test_shared_weights_learn_and_ship_small(folder, name):
    files = [
        {"use": "export", "name": "before", "inputs": {"model": "student"}},
        {"use": "export", "name": "after", "inputs": {"model": "made"}},
    ]
    run = ran(folder, name, *files)
    before, after = (run.artifact(each) for each in ("student", "made"))
    module = load_model(after).module
    stored = [each.file("model.safetensors").stat().st_size for each in (before, after)]
    shipped = [run.artifact(each).file("model.onnx").stat().st_size for each in ("before", "after")]
    assert run.artifact("after").meta["verified"]["agreement"] == 1.0
    if name == "codebook_after":
        books = [each for each in module.modules() if isinstance(each, Clustered)]
        spared = sum(each.weight.numel() * 4 - each.index.numel() for each in books)
        assert spared > 0.5 * stored[0]
        graph = onnx.load(run.artifact("after").file("model.onnx")).graph
        packed = [int(np.prod(each.dims)) for each in graph.initializer if each.data_type == onnx.TensorProto.UINT8]
        assert sorted(packed) == sorted(each.index.numel() for each in books)
    else:
        assert module.layer1[0].conv1.weight is module.layer1[2].conv1.weight
        spared = 4 * 4 * module.layer1[0].conv1.weight.numel()
    assert stored[0] - stored[1] == pytest.approx(spared, abs=4000)
    assert shipped[0] - shipped[1] == pytest.approx(spared, abs=12_000)
    record = after.json("compression.json")
    count = [record[each]["parameters"] for each in ("before", "after")]
    assert [run.artifact(each).json("exported.json")["parameters"] for each in ("before", "after")] == count
    if name == "codebook_after":  # as many weights as before, in fewer bytes
        assert count[1] == count[0] == sum(each.numel() for each in load_model(before).module.parameters())
        assert record["after"]["nonzero"] > 0.9 * count[1]
    else:
        assert count[1] < count[0]


@pytest.mark.parametrize("budget", [{"steps": 1}, {"seconds": 0.2}])
@pytest.mark.parametrize("recover", ["joint", "sparsify"])
def test_masks_are_complete_whatever_the_budget(folder, budget, recover):
    made = recipe(TEACHER, STUDENT, case("magnitude_joint", budget=budget, recover={"use": recover}))
    found = made.run(folder).artifact("made")
    assert zeros(load_model(found).module) == pytest.approx(0.7, abs=1e-3)
    assert found.scores
    again = [json.loads(line) for line in (found.folder / "log.jsonl").read_text().splitlines()]
    scores = [each["scores"]["chosen"] for each in again if each["kind"] == "validation"]
    assert scores[-1] is not None
    assert 0 <= scores[-1] <= 1


def test_zeros_stay_in_a_codebook(folder):
    """Deep Compression: prune, then share; layers too small for a codebook keep their zeros too."""
    pruned = {**case("magnitude_joint"), "name": "pruned"}
    run = recipe(TEACHER, STUDENT, pruned, case("codebook_after", inputs={**PAIR, "model": "pruned"})).run(folder)
    before, after = (dict(load_model(run.artifact(each)).module.named_modules()) for each in ("pruned", "made"))
    layers = {path: each.weight for path, each in before.items() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)}
    assert any(isinstance(each, Clustered) for each in after.values())
    assert any(not isinstance(after[path], Clustered) and (each == 0).any() for path, each in layers.items())
    for path, weight in layers.items():
        if (weight == 0).float().mean() >= 1 / 16:
            assert (after[path].weight[weight == 0] == 0).all(), path


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", ["magnitude_joint", "movement_joint", "n_m_after", "codebook_after"])
def test_a_step_that_was_stopped_goes_on_and_ends_alike(name, tmp_path):
    long = case(name, budget={"steps": 40}, checkpoint_seconds=0.02)
    made = recipe(TEACHER, STUDENT, long)
    whole = made.run(tmp_path / "whole").artifact("made")

    def stop(event):
        if event["step"] == "made" and event["event"] == "progress" and event["done"] > 1:
            raise Stop

    with pytest.raises(Stop):
        made.run(tmp_path / "cut", watch=stop)
    done = []

    def note(event):
        if event["step"] == "made" and event["event"] == "progress":
            done.append(event["done"])

    again = made.run(tmp_path / "cut", watch=note).artifact("made")
    assert max(done[:2]) > 1
    names = ["model.safetensors", "compression.json", "scores.json"]
    assert [(again.folder / each).read_bytes() == (whole.folder / each).read_bytes() for each in names] == [True] * 3

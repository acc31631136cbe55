"""Steps with updates of their own, run as recipes: what they leave, and that they go on where they were stopped."""

import copy
import json
from pathlib import Path

import pytest
import torch

import decoct as dc
from decoct.artifact import Artifact
from decoct.capture import capture
from decoct.data.base import Dataset
from decoct.errors import RecipeError
from decoct.models.exits import ExitNet, Tap, WithExits, sure
from decoct.models.saving import load_model, load_spec
from decoct.recipe.recipe import Recipe
from decoct.runner.execution import Options, prepare
from decoct.steps.base import Context
from decoct.steps.learning.batches import few
from decoct.steps.learning.teachers import alignment_of, to_combined

LEARN = {"budget": {"steps": 6}, "batch_size": 16, "log_every": 2}
BASE = {
    "task": {"use": "image_classification"},
    "data": {"use": "digits", "limit": 160},
    "models": {
        "large": {"use": "small_resnet", "width": 4},
        "small": {"use": "mlp", "hidden": [8]},
        "net": {"use": "small_resnet", "width": 4},
    },
}
ATTACK = {"use": "pgd", "epsilon": 1.0, "step": 0.5, "steps": 2, "high": 16}
TEACHER = {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **LEARN}
PAIR = {"model": "small", "teacher": "teacher"}
METHODS = {
    "mutual": {"inputs": {"model": "small", "peer": "net"}},
    "self_distill": {"inputs": {"model": "net"}, "exits": ["layer1", "layer2"]},
    "ema_distill": {"inputs": {"model": "net"}, "labels": 50},
    "adversarial_distill": {"inputs": PAIR, "attack": ATTACK, "test_attack": ATTACK},
    "assistants": {"inputs": PAIR, "assistants": [{"use": "mlp", "hidden": [16]}]},
    "born_again": {"inputs": {"model": "small"}, "generations": 1},
    "meta_distill": {
        "inputs": PAIR,
        "labels": 60,
        "objective": [{"use": "ctkd", "weight": 0.5}, {"use": "task_loss", "weight": 0.5}],
        "tune": ["weights", "temperature"],
    },
    "distill": {"inputs": {**PAIR, "other": "large"}, "combine": {"use": "ensemble", "weights": "entropy"}},
}


def recipe(*steps, **changes):
    return Recipe.parse({**copy.deepcopy(BASE), "steps": list(steps), **changes})


def step(use, **fields):
    return {"use": use, "name": "student", **LEARN, **METHODS[use], **fields}


def ran(folder: Path, *steps, **changes):
    return recipe(TEACHER, *steps, **changes).run(folder)


def logits(module, batch):
    with torch.no_grad():
        return module.eval()(batch)


def pixels(made: Recipe):
    data, task = prepare(made, Options())
    assert isinstance(data, Dataset)
    batch = few_of(task, data)
    return task.reading("student").preprocessing()(batch.side("student"))


def few_of(task, data, count=40):
    context = Context(task=task, data=data, name="", folder=Path(), work=Path(), seed=0)
    return few(context, count)


class Stop(Exception):
    pass


@pytest.mark.parametrize("use", METHODS)
def test_a_step_that_was_stopped_goes_on_and_ends_alike(use, tmp_path):
    made = recipe(TEACHER, step(use, budget={"steps": 50}, checkpoint_seconds=0.02))
    whole = made.run(tmp_path / "whole").artifact("student")

    def stop(event):
        if event["step"] == "student" and event["event"] == "progress" and event["done"] > 1:
            raise Stop

    with pytest.raises(Stop):
        made.run(tmp_path / "cut", watch=stop)
    done = []

    def note(event):
        if event["step"] == "student" and event["event"] == "progress":
            done.append(event["done"])

    again = made.run(tmp_path / "cut", watch=note).artifact("student")
    assert max(done[:2]) > 1
    names = [each.relative_to(whole.folder) for each in sorted(whole.folder.rglob("*.safetensors"))]
    assert names
    for name in names:
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert dict(again.scores) == dict(whole.scores)


def test_every_peer_is_saved_and_can_be_taken_out(tmp_path):
    part = {"use": "part", "name": "other", "inputs": {"model": "student"}, "part": "peer"}
    run = ran(tmp_path, step("mutual"), part)
    student, other = run.artifact("student"), run.artifact("other")
    assert load_spec(student)[0].use == "mlp"
    assert load_spec(other)[0].use == "small_resnet"
    assert other.scores["accuracy"] == Artifact.load(student.folder / "parts" / "peer").scores["accuracy"]
    assert "peer.accuracy" not in student.scores
    record = json.loads((student.folder / "log.jsonl").read_text().splitlines()[-2])
    assert {"model.kd", "peer.kd", "model.task_loss", "peer.task_loss"} <= set(record["weights"])
    with pytest.raises(RecipeError, match="of student; did you mean peer"):
        ran(tmp_path, step("mutual"), {**part, "part": "pear"})


def test_peers_of_one_model_start_apart(tmp_path):
    run = ran(tmp_path, step("mutual", inputs={"model": "small", "peer": "small"}, budget={"steps": 1}))
    mine = load_model(run.artifact("student")).module.state_dict()
    other = load_model(Artifact.load(run.artifact("student").folder / "parts" / "peer")).module.state_dict()
    assert any(not torch.equal(mine[name], other[name]) for name in mine)


class TestExits:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        return ran(
            tmp_path_factory.mktemp("exits"),
            step("self_distill", pool=2, budget={"steps": 60}),
            {"use": "choose_exit", "name": "early", "inputs": {"model": "student"}, "exit": "layer1"},
            {"use": "choose_exit", "name": "sure", "inputs": {"model": "student"}, "threshold": 0.3},
            {"use": "export", "name": "whole_file", "inputs": {"model": "student"}},
            {"use": "export", "name": "early_file", "inputs": {"model": "early"}},
            {"use": "export", "name": "sure_file", "inputs": {"model": "sure"}},
        )

    def test_a_chosen_exit_answers_as_its_head_did_and_runs_no_further(self, run):
        x = pixels(run.recipe)
        net, early = load_model(run.artifact("student")).module, load_model(run.artifact("early")).module
        assert isinstance(net, ExitNet)
        with capture(net, ["heads.0"]) as features:
            logits(net, x)
        assert torch.equal(logits(early, x), features["heads.0"])
        ran_on = []
        early.net.layer3.register_forward_hook(lambda *_: ran_on.append(1))
        logits(early, x)
        assert not ran_on
        assert not any(each.listener for each in early.modules() if isinstance(each, Tap))

    def test_each_sample_is_answered_by_the_first_exit_that_is_sure(self, run):
        x = pixels(run.recipe)
        net, when_sure = load_model(run.artifact("student")).module, load_model(run.artifact("sure")).module
        with capture(net, ["heads.0", "heads.1"]) as features:
            end = logits(net, x)
        outputs = [features["heads.0"], features["heads.1"], end]
        threshold = outputs[0].softmax(-1).amax(-1).median().item()
        when_sure.threshold = threshold
        expected = [
            next((s[row] for s in outputs[:2] if s[row].softmax(-1).max() >= threshold), outputs[2][row])
            for row in range(len(x))
        ]
        torch.testing.assert_close(logits(when_sure, x), torch.stack(expected), rtol=1e-5, atol=1e-5)
        enough = sure(outputs[:2], threshold)
        assert 0 < enough[0].float().mean() < 1
        ran_on = []
        when_sure.net.layer3.register_forward_hook(lambda *_: ran_on.append(1))
        for row in range(len(x)):
            if abs(outputs[0][row].softmax(-1).max() - threshold) > 1e-5:
                ran_on.clear()
                torch.testing.assert_close(logits(when_sure, x[row : row + 1])[0], expected[row], rtol=1e-4, atol=1e-4)
                assert bool(ran_on) == (not enough[:, row].any())

    def test_scores_of_all_exits_and_shares_are_kept(self, run):
        scores = run.artifact("student").scores
        assert {"accuracy", "layer1.accuracy", "layer2.accuracy"} <= set(scores)
        assert run.artifact("early").scores["accuracy"] == pytest.approx(scores["layer1.accuracy"])
        shares = [value for name, value in run.artifact("sure").scores.items() if name.startswith("share.")]
        assert len(shares) == 3
        assert sum(shares) == pytest.approx(1)

    def test_an_exported_exit_leaves_out_what_comes_after_it(self, run):
        whole, early = (run.artifact(name).file("model.onnx").stat().st_size for name in ("whole_file", "early_file"))
        assert early < 0.5 * whole
        assert run.artifact("sure_file").meta["verified"]["agreement"] == 1.0

    def test_wrong_exits_are_named(self, run):
        interface = load_spec(run.artifact("student"))[1]
        model = {"use": "small_resnet", "width": 4}
        with pytest.raises(RecipeError, match="the network runs layer1, layer2; list them in this order"):
            WithExits(model=model, at=("layer2", "layer1")).build(interface)
        with pytest.raises(RecipeError, match="did you mean layer"):
            WithExits(model=model, at=("layer9",)).build(interface)
        with pytest.raises(RecipeError, match="did you mean layer1"):
            WithExits(model=model, at=("layer1",), exit="layr1")
        with pytest.raises(RecipeError, match="one of the two"):
            dc.ChooseExit(name="x")


def test_the_average_or_the_student_is_kept(tmp_path):
    for keep in ("average", "student"):
        ran(tmp_path / keep, step("ema_distill", keep=keep, select="last"))
    kept = [
        load_model(Artifact.load(tmp_path / keep / "02-student")).module.state_dict() for keep in ("average", "student")
    ]
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_chain_keeps_its_parts_and_their_scores(tmp_path):
    run = ran(tmp_path, step("assistants"), step("born_again", name="again", inputs={"model": "small"}, generations=2))
    student, again = run.artifact("student"), run.artifact("again")
    assert load_spec(Artifact.load(student.folder / "parts" / "assistant_1"))[0].hidden == (16,)
    assert "assistant_1.accuracy" in student.scores
    parts = sorted(each.name for each in (again.folder / "parts").iterdir())
    assert parts == ["generation_0", "generation_1"]
    assert "generation_1.accuracy" in again.scores
    assert not list(tmp_path.glob(".*.work"))


def test_robust_scores_stand_beside_the_clean_ones(tmp_path):
    run = ran(
        tmp_path,
        step("adversarial_distill", budget={"steps": 20}),
        {"use": "robustness", "inputs": {"teacher": "teacher", "student": "student"}, "attack": ATTACK},
    )
    assert {"accuracy", "attacked_accuracy"} <= set(run.artifact("student").scores)
    found = {each["name"]: each["quality"] for each in run.results["models"]}
    assert found["teacher"]["attacked_accuracy"] <= found["teacher"]["accuracy"]
    again = recipe(*[each.plain() for each in run.recipe.steps]).run(tmp_path)
    assert [each["skipped"] for each in again.results["steps"]] == [True, True, True]


class TestSeveralTeachers:
    def test_specialists_teach_what_they_know(self, tmp_path):
        classes = [str(k) for k in range(10)]
        low = {"use": "train_classes", "name": "low", "inputs": {"model": "large"}, "classes": classes[:6], **LEARN}
        high = {**low, "name": "high", "classes": [*classes[6:], "5", "4"]}
        student = step("distill", inputs={"model": "small", "low": "low", "high": "high"}, combine={"use": "ensemble"})
        run = recipe(low, high, student).run(tmp_path)
        assert load_model(run.artifact("low")).module.head.out_features == 6
        record = json.loads((run.artifact("student").folder / "log.jsonl").read_text().splitlines()[-2])
        assert {"agreement.low", "agreement.high", "agreement.teachers", "say.low", "say.high"} <= set(record["terms"])
        assert record["terms"]["say.low"] == pytest.approx(0.5)

    def test_a_teacher_of_fewer_classes_teaches_the_odds_among_them(self, tmp_path):
        low = {"use": "train_classes", "name": "low", "inputs": {"model": "large"}, "classes": ["3", "1"], **LEARN}
        student = step("distill", inputs={"model": "small", "teacher": "low"}, combine=None)
        recipe(low, student).run(tmp_path)
        dkd = {**student, "objective": [{"use": "dkd"}]}
        with pytest.raises(RecipeError, match="the teacher knows 2"):
            recipe(low, dkd).run(tmp_path)

    def test_a_teacher_of_more_classes_from_an_earlier_run(self, tmp_path):
        first = ran(tmp_path / "first")
        narrow = {"use": "train_classes", "name": "narrow", "inputs": {"model": "small"}, "classes": ["7", "2", "5"]}
        recipe({**narrow, **LEARN}).run(tmp_path / "narrow")
        task = prepare(first.recipe, Options())[1]
        few_classes = task.replace(classes=("7", "2", "5"))
        alignment = alignment_of(first.artifact("teacher"), few_classes, "teacher")
        assert alignment.columns == (7, 2, 5)
        assert alignment.known is None

    def test_a_sum_keeps_its_balance_under_a_combination(self):
        terms = [dc.KD(temperature=2.0), dc.KD(name="named", teacher="a"), dc.CrossEntropy()]
        found = to_combined(dc.Sum(terms=terms, balance={"use": "uncertainty"}))
        assert [each.teacher for each in found.terms] == ["combined", "a", None]
        assert found.balance is not None

    def test_terms_on_features_name_their_teacher(self, tmp_path):
        hint = {"use": "hint", "layers": {"hidden.0": "layer3"}}
        with pytest.raises(RecipeError, match="name its `teacher`: teacher, other"):
            ran(tmp_path, step("distill", objective=[hint]))


OTHER = {"model": "net", "teacher": "teacher"}
AUTO = [{"use": "task_loss"}, {"use": "attention_transfer", "weight": 10, "layers": "auto"}]


@pytest.mark.parametrize(
    ("use", "fields", "pairs"),
    [
        ("mutual", {"inputs": {"model": "net", "peer": "large"}}, {("layer1", "layer1"), ("layer3", "layer3")}),
        ("ema_distill", {"objective": [*AUTO[:1], {**AUTO[1], "teacher": "average"}]}, {("layer2", "layer2")}),
        ("adversarial_distill", {"inputs": OTHER}, {("layer2", "layer2")}),
        (
            "meta_distill",
            {"inputs": {"model": "net", "teacher": "teacher"}, "tune": ["weights"]},
            {("layer3", "layer3")},
        ),
    ],
)
def test_layers_are_chosen_in_every_step_with_teachers(use, fields, pairs, tmp_path):
    """`layers: auto` is replaced by stages of equal resolution, and the log says which."""
    models = {**BASE["models"], "large": {"use": "small_resnet", "width": 6}}
    steps = step(use, **{"objective": AUTO, **fields})
    made = ran(tmp_path, steps, models=models).artifact("student")
    first = json.loads(made.file("log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["kind"] == "layers"
    assert pairs <= {(each["student"], each["teacher"]) for each in first["pairs"]}

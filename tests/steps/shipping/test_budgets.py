"""Further targets, budgets and search, through real files of the digits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from decoct.artifact import Artifact, write_whole, writing
from decoct.data.digits import Digits
from decoct.errors import BudgetMissed, RecipeError
from decoct.models.saving import save_model
from decoct.models.small_resnet import SmallResNet
from decoct.recipe.recipe import Recipe
from decoct.runner.verify import verify_run
from decoct.spec import Choice
from decoct.steps.base import Context
from decoct.steps.learning.batches import evaluation_batches
from decoct.steps.search import Search
from decoct.steps.shipping.benchmark import Benchmark
from decoct.steps.shipping.export import Export
from decoct.steps.shipping.quantize import Quantize
from decoct.tasks.image_classification import ImageClassification

DATA = Digits(limit=200).open()
TASK = ImageClassification().resolve(DATA)


def room(folder: Path, name: str, **lineage: object) -> Context:
    return Context(
        task=TASK, data=DATA, name=name, folder=folder / name, work=folder / f".{name}", seed=0, lineage=lineage
    )


def saved(folder: Path, name: str = "student", accuracy: float = 0.9, **lineage: object) -> Artifact:
    torch.manual_seed(0)
    interface = TASK.reading("student").interface
    spec = SmallResNet(width=4)
    module = spec.build(interface)
    module(torch.randn(8, *interface.shape))
    with writing(folder / name, kind="model", name=name, meta={"side": "student", "seed": 0}, lineage=lineage) as draft:
        save_model(draft, module.eval(), spec, interface, side="student")
        draft.scores["accuracy"] = accuracy
    return Artifact.load(folder / name)


@pytest.mark.parametrize("use", ["onnx", "openvino", "torch_export"])
def test_a_file_of_any_target_is_exported_and_benchmarked(use: str, tmp_path: Path) -> None:
    if use == "openvino":
        pytest.importorskip("openvino")
    source = saved(tmp_path)
    target = Choice("decoct.targets").validate({"use": use})
    exported = Export(name="file", target=target, samples=20).run({"model": source}, room(tmp_path, "file"))
    record = exported.json("exported.json")
    assert record["verified"]["max_abs_diff"] < 1e-4
    assert record["target"]["use"] == use
    sizes = [each.stat().st_size for each in exported.folder.iterdir() if each.name.startswith("model.")]
    assert record["file_bytes"] == sum(sizes)
    step = Benchmark(repeats=3, warmup=1, reference=None)
    made = step.run({"file": exported, "model": source}, room(tmp_path, "benchmark"))
    found = {each["name"]: each for each in made.json("records.json")["models"]}
    assert found["file"]["latency"]["runtime"] == {"onnx": "onnxruntime"}.get(use, use)
    assert found["file"]["file_bytes"] == sum(sizes)
    assert found["file"]["quality"] == pytest.approx(found["model"]["quality"], abs=1e-5)
    assert (found["file"]["peak_memory_bytes"] is None) == (use != "onnx")


def test_a_run_with_every_target_is_verified(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    steps = [
        {"use": "train", "name": "student", "inputs": {"model": "small"}, "budget": {"steps": 4}},
        {"use": "export", "name": "xml", "inputs": {"model": "student"}, "target": {"use": "openvino"}},
        {"use": "export", "name": "pt2", "inputs": {"model": "student"}, "target": {"use": "torch_export"}},
        {"use": "quantize", "name": "int8", "inputs": {"model": "student"}, "scheme": {"use": "dynamic"}},
    ]
    recipe = Recipe.parse(
        {
            "task": {"use": "image_classification"},
            "data": {"use": "digits", "limit": 200},
            "models": {"small": {"use": "mlp", "hidden": [64]}},
            "steps": steps,
        }
    )
    run = recipe.run(tmp_path / "run")
    found = {Path(each.artifact).name: each for each in verify_run(run.folder)}
    assert not any(each.wrong for each in found.values())
    for name in ("02-xml", "03-pt2", "04-int8"):
        assert found[name].parity.startswith("says what its model says")
    int8, weights = run.artifact("int8"), run.artifact("student").folder / "model.safetensors"
    assert int8.json("exported.json")["file_bytes"] < 0.6 * weights.stat().st_size
    assert [each["after"] for each in int8.json("exported.json")["quantization"]["changes"]] == [8, 8]


def test_budgets_that_are_kept_are_recorded_as_the_file_has_them(tmp_path: Path) -> None:
    source = saved(tmp_path)
    step = Export(name="file", min_quality=0.0, max_latency_ms=1e4, max_size_bytes=10**7)
    made = step.run({"model": source}, room(tmp_path, "file"))
    kept = made.json("exported.json")["budgets"]
    session = step.target.load(made.file("model.onnx"))
    right = [
        session(TASK.reading("student").feed(batch))["logits"].argmax(-1) == batch.target.numpy()
        for batch in evaluation_batches(room(tmp_path, "x"), "validation")
    ]
    assert kept["min_quality"]["measured"] == pytest.approx(np.concatenate(right).mean())
    assert kept["max_size_bytes"] == {"budget": 1e7, "measured": made.file("model.onnx").stat().st_size}
    assert 0 < kept["max_latency_ms"]["measured"] < 1e4


@pytest.mark.parametrize("kind", [Export, Quantize])
@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"max_size_bytes": 1000}, r"max_size_bytes: the file takes \d+ bytes, \d+ \([\d.]+.*\) above 1000"),
        ({"max_latency_ms": 1e-6}, r"one call takes [\d.]*[1-9]\d* ms, .* times .* above 0.000001 ms"),
        ({"min_quality": 1.1}, r"min_quality: validation accuracy is 0\.\d+, \d\.\d+ below the 1.1000 asked for"),
    ],
)
def test_a_missed_budget_says_by_how_much_and_leaves_nothing(
    kind: type, budget: dict, words: str, tmp_path: Path
) -> None:
    source = saved(tmp_path)
    with pytest.raises(BudgetMissed, match=words) as raised:
        kind(name="file", **budget).run({"model": source}, room(tmp_path, "file"))
    assert raised.value.exit_code == 5
    assert [each.name for each in tmp_path.iterdir()] == ["student"]


def test_a_missed_quality_names_the_step_that_lost_most(tmp_path: Path) -> None:
    first = saved(tmp_path, "student", 0.97)
    cut = saved(tmp_path, "pruned", 0.10, model=[{"step": "student", "from": "01-student", "hash": first.hash}])
    shared = saved(tmp_path, "shared", 0.09, model=[{"step": "pruned", "from": "02-pruned", "hash": cut.hash}])
    with pytest.raises(BudgetMissed, match=r"step 'pruned' lost most, 0.9700 to 0.1000"):
        Export(name="file", min_quality=0.95).run({"model": shared}, room(tmp_path, "file"))
    with pytest.raises(BudgetMissed, match=r"step 'student', the first of its line, has 0.9700 already"):
        Export(name="file", min_quality=0.99).run({"model": shared}, room(tmp_path, "file"))


PRUNE = {"use": "prune", "scheme": {"use": "channels", "ratio": 0.5, "round_to": 1}, "recover": {"use": "none"}}


def search(**fields: object) -> Search:
    plain = {"use": "search", "name": "fit", "step": PRUNE, "setting": "scheme.ratio", "low": 0.1, "high": 0.9}
    return Search.parse({**plain, **fields})


def test_the_mildest_that_is_small_enough_is_found(tmp_path: Path) -> None:
    source = saved(tmp_path)
    whole = Export(name="file").run({"model": source}, room(tmp_path, "file"))
    limit = whole.json("exported.json")["file_bytes"] // 3
    found = search(max_size_bytes=limit, tries=4).run({"model": source}, room(tmp_path, "fit"))
    record = found.json("search.json")
    tries = {each["value"]: each for each in record["tries"]}
    assert len(tries) == 4
    good = [value for value, each in tries.items() if each["good"]]
    bad = [value for value, each in tries.items() if not each["good"]]
    assert record["chosen"] == min(good) > max(bad)
    assert min(good) - max(bad) == pytest.approx(0.8 / 2**3)
    again = Export(name="small", max_size_bytes=limit).run({"model": found}, room(tmp_path, "small"))
    measured = tries[record["chosen"]]["budgets"]["max_size_bytes"]["measured"]
    assert again.json("exported.json")["file_bytes"] == measured
    assert found.kind == "model"
    assert found.name == "fit"


def test_the_strongest_that_keeps_quality_is_taken_at_once(tmp_path: Path) -> None:
    source = saved(tmp_path)
    found = search(min_quality=0.0).run({"model": source}, room(tmp_path, "fit"))
    assert [each["value"] for each in found.json("search.json")["tries"]] == [0.9]


def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    source, step = saved(tmp_path), search(max_size_bytes=20_000, tries=3)
    context = room(tmp_path, "fit")
    step._try(0.1, {"model": source}, context)
    note = context.work / "fit-0_1.json"
    note.write_text(json.dumps({"max_size_bytes": 123.0}), encoding="utf-8")
    found = step.run({"model": source}, context)
    assert found.json("search.json")["tries"] == [
        {"value": 0.1, "good": True, "budgets": {"max_size_bytes": {"budget": 20000.0, "measured": 123.0}}}
    ]


@pytest.mark.parametrize(
    ("low", "high", "budget", "good", "chosen"),
    [
        (1, 2, {"min_quality": 0.5}, [1], 1),
        (2, 3, {"max_size_bytes": 100}, [3], 3),
        (2, 3, {"min_quality": 0.5}, [2], 2),
        (1, 2, {"max_size_bytes": 100}, [2], 2),
        (1, 6, {"min_quality": 0.5}, [1, 2, 3], 3),
        (1, 6, {"max_size_bytes": 100}, [6], 6),
    ],
)
def test_of_whole_numbers_both_ends_are_tried(
    tmp_path: Path, low: int, high: int, budget: dict, good: list[int], chosen: int
) -> None:
    source, context = saved(tmp_path), room(tmp_path, "fit")
    step = search(setting="scheme.round_to", low=low, high=high, whole=True, **budget)
    (name,) = budget
    for value in range(low, high + 1):  # as an interrupted search has measured them
        kept = {"min_quality": 0.9, "max_size_bytes": 50.0} if value in good else {}
        found = {"min_quality": 0.1, "max_size_bytes": 500.0} | kept
        write_whole(context.work / f"fit-{value}.json", json.dumps({name: found[name]}))
    record = step.run({"model": source}, context).json("search.json")
    assert record["chosen"] == chosen
    tried = [each["value"] for each in record["tries"]]
    assert len(set(tried)) == len(tried) <= 5


def test_a_budget_out_of_reach_is_said(tmp_path: Path) -> None:
    source = saved(tmp_path)
    with pytest.raises(
        BudgetMissed, match=r"none of 2 tries of scheme.ratio from 0.1 to 0.9 .* nearest, at 0.5: max_size"
    ):
        search(max_size_bytes=10, tries=2).run({"model": source}, room(tmp_path, "fit"))
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no budget"),
        ({"min_quality": 0.5, "low": 0.9, "high": 0.1}, "low must be less"),
        ({"min_quality": 0.5, "high": 1.5}, "ratio"),
        ({"min_quality": 0.5, "setting": "scheme.ration"}, "did you mean ratio"),
        ({"min_quality": 0.5, "setting": "scheme.score"}, "no number"),
        ({"min_quality": 0.5, "step": {"use": "export"}}, "gives exported"),
        ({"min_quality": 0.5, "step": {**PRUNE, "inputs": {"model": "a"}}}, "step.inputs"),
    ],
)
def test_a_search_that_cannot_work_is_refused(fields: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        search(**fields)

"""The step qat: a student learns with rounded numbers, and ships as a file of integers."""

import copy
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from decoct.artifact import Artifact
from decoct.data.digits import Digits
from decoct.errors import IntegrityError, RecipeError
from decoct.models.onnx_file import exact_options
from decoct.models.saving import load_model
from decoct.quantization.aware.modules import QuantizedNet
from decoct.runner.verify import _parity, verify_run
from decoct.steps.compressing.qat import QAT
from tiny import PAIR, recipe

RUN = {
    **PAIR,
    "data": {"use": "digits"},
    "models": {"net": {"use": "small_resnet", "width": 8}},
    "steps": [
        {"use": "train", "name": "teacher", "inputs": {"model": "net"}, "budget": {"steps": 120}, "batch_size": 32},
        {
            "use": "qat",
            "name": "rounded",
            "inputs": {"model": "teacher", "teacher": "teacher"},
            "budget": {"steps": 15},
            "batch_size": 32,
        },
        {"use": "export", "name": "file", "inputs": {"model": "rounded"}},
        {"use": "quantize", "name": "again", "inputs": {"model": "rounded"}},
        {"use": "quantize", "name": "static", "inputs": {"model": "teacher"}},
        {"use": "export", "name": "float", "inputs": {"model": "teacher"}},
        {"use": "quantize", "name": "from_file", "inputs": {"model": "float"}},
        {"use": "export", "name": "program", "inputs": {"model": "teacher"}, "target": {"use": "torch_export"}},
    ],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qat") / "run"
    recipe(RUN).run(folder)
    return folder


def artifact(folder: Path, name: str) -> Artifact:
    [found] = [each for each in folder.iterdir() if each.name.endswith(f"-{name}")]
    return Artifact.load(found)


def changed(**changes: object) -> dict:
    """The recipe with other settings of its qat step, which comes last."""
    plain = copy.deepcopy(RUN)
    plain["steps"] = plain["steps"][:2]
    plain["steps"][0]["budget"] = {"steps": 3}
    plain["steps"][1].update({"budget": {"steps": 2}, **changes})
    return plain


def test_at_8_bits_it_is_as_good_as_the_float_model(finished: Path) -> None:
    before, after = artifact(finished, "teacher"), artifact(finished, "rounded")
    assert before.scores["accuracy"] > 0.8
    assert after.scores["accuracy"] >= before.scores["accuracy"] - 0.02
    assert isinstance(load_model(after).module, QuantizedNet)


def test_the_report_names_every_layer_and_its_bits(finished: Path) -> None:
    report = artifact(finished, "rounded").json("compression.json")
    assert report["scheme"]["use"] == "fake_quantize"
    assert {each["kind"] for each in report["changes"]} == {"bits"}
    assert [(each["before"], each["after"]) for each in report["changes"]] == [(32, 8)] * 10
    assert report["before"]["macs"] == report["after"]["macs"]


def test_the_file_runs_in_integers_and_agrees_with_the_model(finished: Path, tmp_path: Path) -> None:
    exported = artifact(finished, "file")
    record = exported.json("exported.json")
    assert record["verified"]["agreement"] >= 0.98
    assert record["verified"]["max_abs_diff"] <= record["verified"]["tolerance"]
    assert record["audit"]["int8"] == 10
    assert record["audit"]["float"] == 0
    options = exact_options()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(exported.file("model.onnx")), options, ["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["QLinearConv"] == 9
    assert operators["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm"} & set(operators)
    test = Digits().open().splits["test"]
    [logits] = session.run(["logits"], {"image": test.columns["image"].transpose(0, 3, 1, 2)})
    quality = float((logits.argmax(1) == test.columns["label"]).mean())
    assert quality > 0.8
    floating = sum(each.numel() for each in load_model(artifact(finished, "teacher")).module.parameters()) * 4
    weights = sum(each.ByteSize() for each in onnx.load(exported.file("model.onnx")).graph.initializer)
    assert weights < 0.4 * floating


def test_a_second_run_makes_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    plain = copy.deepcopy(RUN)
    plain["steps"] = plain["steps"][:2]
    recipe(plain).run(tmp_path / "again")
    left, right = (load_model(artifact(each, "rounded")).module.state_dict() for each in (finished, tmp_path / "again"))
    assert all(torch.equal(each, right[name]) for name, each in left.items())


def test_it_trains_on_under_the_features_of_a_teacher(tmp_path: Path) -> None:
    plain = changed()
    plain["steps"].append(
        {
            "use": "distill",
            "name": "further",
            "inputs": {"model": "rounded", "teacher": "teacher"},
            "objective": [{"use": "kd"}, {"use": "hint", "layers": {"layer3": "layer3"}}],
            "budget": {"steps": 2},
            "batch_size": 16,
        }
    )
    recipe(plain).run(tmp_path / "run")
    assert isinstance(load_model(artifact(tmp_path / "run", "further")).module, QuantizedNet)


def test_a_step_that_changes_structure_must_come_before(tmp_path: Path) -> None:
    plain = changed()
    plain["steps"].append({**plain["steps"][1], "name": "twice", "inputs": {"model": "rounded"}})
    with pytest.raises(RecipeError, match="put this step before qat"):
        recipe(plain).run(tmp_path / "run")
    assert not any(each.name.endswith("-twice") for each in (tmp_path / "run").iterdir())


def test_a_wrong_layer_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"layer9.*layer1"):
        recipe(changed(scheme={"use": "fake_quantize", "protect": ["layer9"]})).run(tmp_path / "run")
    with pytest.raises(RecipeError, match="weight_bits"):
        QAT.parse({"name": "q", "scheme": {"use": "fake_quantize", "weight_bits": 1}})


def test_export_refuses_a_file_that_rounds_otherwise(finished: Path, tmp_path: Path, monkeypatch) -> None:
    """The runtime's file is compared with the model: scales that are not the model's are seen."""
    from decoct.quantization.aware import modules
    from decoct.quantization.aware.onnx_forms import OnnxActivation

    class Wrong(OnnxActivation):
        def __init__(self, scale: torch.Tensor, zero_point: torch.Tensor, bits: int) -> None:
            super().__init__(scale * 3, zero_point, bits)

    monkeypatch.setattr(modules, "OnnxActivation", Wrong)
    plain = changed()
    plain["steps"].append({"use": "export", "name": "file", "inputs": {"model": "rounded"}})
    with pytest.raises(IntegrityError, match="differs from torch"):
        recipe(plain).run(tmp_path / "run")


def test_settings_survive_python_and_json() -> None:
    step = QAT.parse({"name": "q", "scheme": {"use": "fake_quantize", "weight_bits": 4, "method": "ste"}})
    assert QAT.parse(json.loads(json.dumps(step.plain()))) == step
    assert step.scheme.weight_bits == 4
    assert np.isfinite(step.budget.epochs)


def test_quantize_keeps_the_quantizers_that_were_learned(finished: Path) -> None:
    """Its file is the exported one: scheme and calibration are not used, and the record says so."""
    made = artifact(finished, "again")
    record = made.json("exported.json")
    assert made.file("model.onnx").read_bytes() == artifact(finished, "file").file("model.onnx").read_bytes()
    assert record["quantization"]["facts"] == {"quantizers": "learned with the weights"}
    assert record["quantization"]["calibration"] == {}
    assert record["quantization"]["changes"] == []
    assert record["verified"]["agreement"] >= 0.99
    assert record["audit"]["float"] == 0


def test_at_4_bits_the_file_says_what_the_model_says(tmp_path: Path) -> None:
    """A bias that is rounded in the file alone moves most answers by a tenth of their standard deviation."""
    plain = changed(scheme={"use": "fake_quantize", "weight_bits": 4, "activation_bits": 4})
    plain["steps"].append({"use": "export", "name": "file", "inputs": {"model": "rounded"}})
    recipe(plain).run(tmp_path / "run")
    record = artifact(tmp_path / "run", "file").json("exported.json")
    assert record["verified"]["agreement"] >= 0.99
    assert record["verified"]["max_abs_diff"] <= 0.5 * record["verified"]["tolerance"]
    assert record["audit"]["float"] > 0


def test_verify_runs_each_file_beside_what_it_was_made_from(finished: Path, tmp_path: Path) -> None:
    found = {Path(each.artifact).name.partition("-")[2]: each for each in verify_run(finished)}
    assert not any(each.wrong for each in found.values())
    for name in ("file", "again", "static", "float", "from_file", "program"):
        assert found[name].parity.startswith("says what its model says"), (name, found[name].parity)
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    for name, other in (("static", "again"), ("from_file", "again"), ("file", "static"), ("again", "static")):
        folder = artifact(copied, name).folder
        shutil.copy(artifact(finished, other).file("model.onnx"), folder / "model.onnx")
        with pytest.raises(IntegrityError, match="differs from its model"):
            _parity(Artifact.load(folder, verify=False), offline=True)
    wrong = {Path(each.artifact).name.partition("-")[2]: each.wrong for each in verify_run(copied) if each.wrong}
    assert set(wrong) == {"static", "from_file", "file", "again"}

"""OpenVINO and torch.export: the file says what torch says, and a foreign file runs nothing."""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from decoct.errors import IntegrityError, RecipeError
from decoct.models.base import Interface
from decoct.models.bilstm import BiLSTM
from decoct.models.small_resnet import SmallResNet
from decoct.spec import Choice
from decoct.targets.base import Target
from decoct.targets.inspection import is_operator, is_size, is_tree, why_unsafe
from shipped import written

IMAGE = Interface(kind="image", shape=(1, 8, 8), outputs=4)
TEXT = Interface(kind="text", shape=(12,), outputs=3, vocabulary=50, padding=0)
FORMATS = ["onnx", "openvino", "torch_export"]


class Plain(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, image: torch.Tensor) -> torch.Tensor:
        return self.model(image.float() / 255)


class Reading(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


def target(use: str) -> Target:
    if use == "openvino":
        pytest.importorskip("openvino")
    return Choice("decoct.targets").validate({"use": use})


def image_program() -> nn.Module:
    torch.manual_seed(0)
    model = SmallResNet(width=4).build(IMAGE)
    for _ in range(3):
        model(torch.randn(8, *IMAGE.shape))
    return Plain(model).eval()


@pytest.mark.parametrize("use", FORMATS)
def test_an_image_file_says_what_torch_says_for_any_batch(use: str, tmp_path: Path) -> None:
    program, form = image_program(), target(use)
    example = {"image": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}
    path = written(form, program, example, tmp_path, {"image": {0: "batch"}}, output="logits")
    session = form.load(path, threads=1)
    for count in (1, 2, 5):
        x = np.random.default_rng(count).integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)
        with torch.no_grad():
            expected = program(image=torch.from_numpy(x)).numpy()
        assert set(session({"image": x})) == {"logits"}
        assert np.abs(session({"image": x})["logits"] - expected).max() < 1e-5
    assert all(each.is_file() for each in form.files(path))
    assert sorted(form.files(path)) == sorted(each for each in tmp_path.iterdir())


@pytest.mark.parametrize("use", ["onnx", "openvino"])
def test_a_text_file_takes_any_length(use: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program, form = Reading(BiLSTM(embedding=8, hidden=6).build(TEXT)).eval(), target(use)
    axes = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}
    example = {name: torch.ones(2, 5, dtype=torch.long) for name in axes}
    session = form.load(written(form, program, example, tmp_path, axes))
    for batch, length in ((1, 3), (4, 9)):
        ids = torch.randint(1, 50, (batch, length))
        mask = (torch.arange(length) < torch.randint(1, length + 1, (batch, 1))).long()
        feed = {"input_ids": ids * mask, "attention_mask": mask}
        with torch.no_grad():
            expected = program(**feed).numpy()
        answer = session({name: value.numpy() for name, value in feed.items()})["logits"]
        assert np.abs(answer - expected).max() < 1e-5


def test_a_recurrent_layer_that_torch_would_write_out_is_named(tmp_path: Path) -> None:
    program = Reading(BiLSTM(embedding=8, hidden=6).build(TEXT)).eval()
    axes = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}
    example = {name: torch.ones(2, 5, dtype=torch.long) for name in axes}
    with pytest.raises(RecipeError, match=r"'model.layer1.forwards' \(LSTM\) for one length .* export to onnx"):
        written(target("torch_export"), program, example, tmp_path, axes)


def test_openvino_computes_in_float_and_sends_nothing(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = (
        "import sys, socket; socket.socket.connect = None\n"
        "from decoct.targets.openvino import library\n"
        "library()\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "print(used.tm.__name__, 'openvino_telemetry' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.split() == ["openvino.tools.ovc.telemetry_stub", "False"]


def test_an_operator_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    for use in ("openvino", "torch_export"):
        with pytest.raises(RecipeError, match=r"'model.*' \(Branching\) cannot be traced"):
            written(target(use), Plain(Branching()), {"image": torch.ones(2, 3)}, tmp_path, {"image": {0: "batch"}})
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


def rewritten(path: Path, change: dict[str, bytes]) -> Path:
    """The archive with some members in another form."""
    out = path.with_name("foreign.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for each in old.namelist():
            new.writestr(each, change.pop(each, old.read(each)))
        for name, content in change.items():
            new.writestr(name, content)
    return out


@pytest.fixture
def pt2(tmp_path: Path) -> Path:
    example = {"image": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}
    return written(target("torch_export"), image_program(), example, tmp_path, {"image": {0: "batch"}})


def test_a_written_program_holds_no_pickle(pt2: Path) -> None:
    assert why_unsafe(pt2) == ""


def test_a_pickle_in_a_program_is_not_opened(pt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(pt2) as archive:
        names = archive.namelist()
        root = names[0].partition("/")[0]
        graph_name = next(each for each in names if each.endswith("models/model.json"))
        graph = json.loads(archive.read(graph_name))
        config_name = next(each for each in names if each.endswith("weights_config.json"))
        config = json.loads(archive.read(config_name))
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    changes = [
        {f"{root}/data/sample_inputs/model.pt": buffer.getvalue()},
        {f"{root}/data/constants/custom_obj_0": pickle.dumps(Bomb())},
    ]
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    changes.append({config_name: json.dumps(config).encode(), f"{root}/data/weights/weight_0": buffer.getvalue()})
    called = json.loads(json.dumps(graph))
    called["graph_module"]["graph"]["nodes"][0]["target"] = "torch.load"
    changes.append({graph_name: json.dumps(called).encode()})
    text = json.dumps(graph)
    evil = "__import__('pathlib').Path('exploded').touch()"
    found = text.index('"expr_str": "')
    end = text.index('"', found + 13)
    changes.append({graph_name: (text[: found + 13] + evil + text[end:]).encode()})
    for change in changes:
        with pytest.raises(IntegrityError, match="is not opened"):
            target("torch_export").load(rewritten(pt2, dict(change)))
    assert not Path("exploded").exists()


def graph_of(path: Path) -> tuple[str, dict]:
    """Name and content of the graph in a .pt2 file."""
    with zipfile.ZipFile(path) as archive:
        name = next(each for each in archive.namelist() if each.endswith("models/model.json"))
        return name, json.loads(archive.read(name))


LEAF = {"type": None, "context": None, "children_spec": []}


def spec(kind: str, context: object, children: list) -> str:
    return json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": children}])


ENUM = {"__enum__": True, "fqn": "intruder:X", "name": "A"}
FACTORY = {"default_factory_module": "intruder", "default_factory_name": "X", "dict_context": ["a"]}


@pytest.mark.parametrize(
    "text",
    [
        spec("builtins.dict", [ENUM], [LEAF]),
        spec("builtins.tuple", ENUM, [LEAF]),
        spec("collections.defaultdict", FACTORY, [LEAF]),
        spec("builtins.list", None, [{"type": "builtins.tuple", "context": json.dumps(ENUM), "children_spec": []}]),
        json.dumps([2, LEAF]),
        "[" * 5000,
        "no JSON",
    ],
)
def test_a_tree_spec_that_names_a_module_imports_nothing(
    pt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "intruder.py").write_text("open('exploded', 'w').close()\n")
    name, graph = graph_of(pt2)
    graph["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = text
    with pytest.raises(IntegrityError, match="is not opened: its in_spec"):
        target("torch_export").load(rewritten(pt2, {name: json.dumps(graph).encode()}))
    assert not Path("exploded").exists()


def test_tree_specs_of_torch_itself_are_taken() -> None:
    import torch.utils._pytree as pytree

    plain = pytree.tree_structure({"a": (1, [2, None]), "b": {"c": 3}})
    assert is_tree(pytree.treespec_dumps(plain))


@pytest.mark.parametrize("call", ["torch.ops.aten.from_file.default", "torch.ops.aten.from_file"])
def test_a_graph_that_maps_a_file_is_not_opened(pt2: Path, tmp_path: Path, call: str) -> None:
    name, graph = graph_of(pt2)
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["target"] = call
    text = {"name": "filename", "arg": {"as_string": str(tmp_path / "victim")}, "kind": 1}
    node["inputs"] = [text, {"name": "shared", "arg": {"as_bool": True}, "kind": 1}]
    with pytest.raises(IntegrityError, match="is not opened: its graph calls"):
        target("torch_export").load(rewritten(pt2, {name: json.dumps(graph).encode()}))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    "call",
    [
        "aten.save.default",
        "aten.set_.source_Storage",
        "aten.set_data.default",
        "aten.resize_.default",
        "prims.resize.default",
        "aten.warn.default",
        "aten.__class__",
        "aten.name",
        "aten.gelu.__class__",
        "aten.format.default",
        "aten.gelu.unknown",
        "higher_order.cond",
    ],
)
def test_operators_on_files_storages_and_text_are_refused(call: str) -> None:
    assert not is_operator(f"torch.ops.{call}")


@pytest.mark.parametrize(
    "call",
    ["linear.default", "gelu.default", "div.Tensor_mode", "conv2d.padding", "scaled_dot_product_attention.default"]
    + [
        "batch_norm.default",
        "index.Tensor",
        "to.dtype",
        "sym_size.int",
        "lstm.input",
        "empty.memory_format",
        "add_.Tensor",
    ]
    + ["scatter_reduce.two", "einsum.default", "split_with_sizes.default", "_assert_scalar.default"],
)
def test_operators_that_compute_are_taken(call: str) -> None:
    assert is_operator(f"torch.ops.aten.{call}")


def test_an_archive_that_two_readers_see_differently_is_not_opened(pt2: Path) -> None:
    name, graph = graph_of(pt2)
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.load"
    out = pt2.with_name("twice.pt2")
    with zipfile.ZipFile(pt2) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        new.writestr(name.replace("model.json", "Model.json"), json.dumps(graph))
        for each in old.namelist():
            new.writestr(each, old.read(each))
    assert "two ways" in why_unsafe(out)


@pytest.mark.parametrize(
    "text",
    [
        "sympify('1')",
        "Symbol('s').func",
        "Symbol('a b')",
        "[1]",
        "lambdify('x')",
        "Integer('1')",
        "Mul(*x)",
        "x",
        "(" * 500,
    ],
)
def test_an_expression_of_anything_but_sizes_is_refused(text: str) -> None:
    assert not is_size(text)


@pytest.mark.parametrize("use", FORMATS)
def test_a_damaged_or_missing_file_is_said(use: str, tmp_path: Path) -> None:
    form = target(use)
    example = {"image": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}
    path = written(form, image_program(), example, tmp_path, {"image": {0: "batch"}})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(IntegrityError):
        form.load(path)
    with pytest.raises(IntegrityError, match="missing"):
        form.load(tmp_path / "none")

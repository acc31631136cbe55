"""Files in integers beside their float files: what is slower or larger is said, what is faster in float stays so."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import decoct as dc
from decoct.errors import RecipeError
from decoct.meters.latency import Latency, measure
from decoct.models.interface import Port, Program
from decoct.models.onnx_file import open_session
from decoct.quantization.dynamic import Dynamic
from decoct.quantization.floating import in_integers, without_quantizers
from decoct.quantization.kinds import kinds_of
from decoct.quantization.static import Static
from decoct.steps.shipping.keeping import FASTER, faster
from decoct.steps.shipping.quantize import Quantize
from decoct.steps.shipping.speed import Feed, Speed, Timer, against_its_float, timed, warn_of_cost
from decoct.targets.onnx import graph, save

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FEED = {"input": IMAGES.numpy()}
DEPTHWISE, POINTWISE, PLAIN = "depthwise convolutions before SiLU", "pointwise convolutions", "convolutions"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.depth(self.stem(input).relu()))
        return self.head(self.point(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    axes, port = {"input": {0: "batch"}}, {"logits": Port(kind="logits")}
    return graph(Program(Net().eval(), {"input": IMAGES}, axes, port), opset=20)


def seen(ms: Mapping[str, float]) -> dict[str, Latency]:
    return {name: Latency(value, value, value, value, 1, False) for name, value in ms.items()}


def clock(cost: Callable[[set[str]], float]) -> Timer:
    """Milliseconds by which layers of a file are in integers."""

    def timer(files: Mapping[str, Path], feed: Feed) -> dict[str, Latency]:
        assert all(open_session(path)(feed) for path in files.values())
        return seen({name: cost(integers(onnx.load(str(path)))) for name, path in files.items()})

    return timer


def integers(proto: onnx.ModelProto) -> set[str]:
    """The layers of a file whose weights are codes."""
    names = {each.name for each in proto.graph.initializer if each.data_type == onnx.TensorProto.INT8 and each.dims}
    return {layer for layer in ("stem", "depth", "point", "head") if any(layer in name for name in names)}


def kept(proto: onnx.ModelProto, cost: Callable[[set[str]], float]) -> Any:
    return faster("it", Static(), proto, lambda: iter([FEED]), None, FEED, clock(cost))


def test_layers_are_told_apart_by_operator_shape_and_activation(proto: onnx.ModelProto) -> None:
    found = Static().quantize(proto, lambda: iter([FEED]), None)
    kinds = {"depth": DEPTHWISE, "point": POINTWISE, "stem": PLAIN, "head": "small linear layers"}
    assert {paths: kind for kind, (paths,) in kinds_of(proto, found.changes).items()} == kinds


def test_what_is_slower_in_integers_stays_in_float(proto: onnx.ModelProto) -> None:
    found = kept(proto, lambda layers: 4.0 - len(layers) + 3.0 * ("depth" in layers))
    assert integers(found.graph) == {"stem", "point", "head"}
    facts = found.facts["keep_float"]
    assert facts == {
        "kinds": {DEPTHWISE: ["depth"]},
        "float_ms": 4.0,
        "integers_ms": 3.0,
        "file_ms": 1.0,
        "whole": False,
    }
    notes = {each.path: (each.after, each.note) for each in found.changes}
    assert notes == {"stem": (8, ""), "depth": (32, FASTER), "point": (8, ""), "head": (8, "")}


def test_what_gains_little_is_not_kept(proto: onnx.ModelProto) -> None:
    found = kept(proto, lambda layers: 2.0 + 0.05 * ("depth" in layers) - ("stem" in layers))
    assert integers(found.graph) == {"stem", "point", "head"}
    found = kept(proto, lambda layers: 2.0 + 0.02 * ("depth" in layers) - ("stem" in layers))
    assert integers(found.graph) == {"stem", "depth", "point", "head"}
    assert found.facts["keep_float"]["kinds"] == {}


def test_one_kind_alone_is_tried_where_no_step_gains(proto: onnx.ModelProto) -> None:
    found = kept(proto, lambda layers: {0: 2.0, 1: 1.0 if layers == {"stem"} else 3.0}.get(len(layers), 4.0))
    assert integers(found.graph) == {"stem"}


def test_where_integers_never_pay_the_file_is_in_float(proto: onnx.ModelProto) -> None:
    with pytest.warns(UserWarning, match=r"no file in integers is as fast .*: 3\.0 × its time.*written in float"):
        found = kept(proto, lambda layers: 3.0 if layers else 1.0)
    assert not in_integers(found.graph)
    assert {each.after for each in found.changes} == {32}
    assert {each.note for each in found.changes} == {FASTER}
    assert found.facts["keep_float"]["whole"]
    assert found.facts["keep_float"]["file_ms"] == found.facts["keep_float"]["float_ms"] == 1.0


def test_as_fast_as_float_stays_in_integers(proto: onnx.ModelProto) -> None:
    found = kept(proto, lambda layers: 1.02 if layers else 1.0)
    assert integers(found.graph) == {"stem", "depth", "point", "head"}


def test_budgets_are_judged_on_what_is_left_in_integers(
    monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto
) -> None:
    asked: list[set[str]] = []

    def judge(given: onnx.ModelProto) -> float:
        asked.append(integers(given))
        return 1.0

    timer = clock(lambda layers: 4.0 - len(layers) + 3.0 * ("depth" in layers))
    found = faster("it", Static(max_drop=0.5), proto, lambda: iter([FEED]), judge, FEED, timer)
    assert asked == [set(), {"stem", "point", "head"}]
    assert found.facts["mixture"]["kept"] == []


def test_what_was_protected_is_not_said_to_be_faster(proto: onnx.ModelProto) -> None:
    timer = clock(lambda layers: 4.0 - len(layers) + 3.0 * ("depth" in layers))
    found = faster("it", Static(protect=("point",)), proto, lambda: iter([FEED]), None, FEED, timer)
    notes = {each.path: each.note for each in found.changes}
    assert notes == {"stem": "", "depth": FASTER, "point": "protected", "head": ""}


def test_dynamic_keeps_layers_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    program = Program(net, {"input": torch.ones(2, 8)}, {"input": {0: "batch"}}, {"logits": Port(kind="logits")})
    proto, feed = graph(program, opset=20), {"input": np.ones((2, 8), np.float32)}

    def timer(files: Mapping[str, Path], feed: Feed) -> dict[str, Latency]:
        own = {name: onnx.load(str(path)).graph.initializer for name, path in files.items()}
        codes = {
            name: [each.name for each in found if each.data_type == 3 and each.dims] for name, found in own.items()
        }
        return seen({n: 2.0 + any("0." in c for c in each) - any("2." in c for c in each) for n, each in codes.items()})

    found = faster("it", Dynamic(), proto, None, None, feed, timer)
    assert {each.path: each.after for each in found.changes} == {"0": 32, "2": 8}


def test_slower_and_larger_are_said(tmp_path: Path, proto: onnx.ModelProto) -> None:
    path = save(Static().quantize(proto, lambda: iter([FEED]), None).graph, tmp_path / "int8.onnx")
    found = against_its_float(path, proto, FEED, lambda files, feed: seen({"float": 1.0, "file": 1.9}))
    larger = path.stat().st_size > proto.ByteSize()
    assert found.words()[0] == "slower than float: 1.9 ×"
    assert (len(found.words()) == 2) == larger
    with pytest.warns(UserWarning, match=r"it: the file in integers is slower than float: 1\.9 ×.*keep_float: auto"):
        warn_of_cost("it", found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cost("it", Speed(1.0, 1.09, 10, 10))
    assert Speed(1.0, 1.0, 10, 12).words() == ["larger than float: 1.2 ×"]
    assert Speed(1.0, 2.0, 10, 10, noisy=True).words() == ["slower than float: 2.0 × (measured with noise)"]


def test_both_files_are_timed_on_one_sample(tmp_path: Path, proto: onnx.ModelProto) -> None:
    path = save(Static().quantize(proto, lambda: iter([FEED]), None).graph, tmp_path / "int8.onnx")
    big = {"input": np.concatenate([FEED["input"]] * 64)}
    found = timed({"it": path}, big)["it"]
    session = open_session(path)
    whole = measure({"it": lambda: session(big)}, repeats=3, warmup=1)["it"]
    assert found.p50_ms < whole.p50_ms
    assert against_its_float(path, proto, big).file_bytes == path.stat().st_size


@pytest.mark.parametrize("scheme", [Static(), Static(per_channel=False), Dynamic()])
def test_a_graph_without_its_quantizers_is_the_float_one(tmp_path: Path, proto: onnx.ModelProto, scheme: Any) -> None:
    made = scheme.quantize(proto, lambda: iter([FEED]), None).graph
    back = without_quantizers(made)
    assert in_integers(made)
    assert not in_integers(back)
    ways = {"float": proto, "back": back, "int8": made}
    found = {name: open_session(save(each, tmp_path / f"{name}.onnx"))(FEED)["logits"] for name, each in ways.items()}
    scale = np.abs(found["float"]).max()
    assert np.abs(found["back"] - found["float"]).max() < 0.02 * scale
    assert np.abs(found["back"] - found["float"]).max() < np.abs(found["int8"] - found["float"]).max()


@pytest.mark.filterwarnings("ignore")
def test_export_says_how_fast_the_file_is(tmp_path: Path) -> None:
    net, path = Net().eval(), tmp_path / "a.onnx"
    record = dc.export(net, path, example=IMAGES, quantize="int8", calibration=IMAGES, keep_float="auto")
    speed = record["speed"]
    assert speed["ratio"] == pytest.approx(speed["file_ms"] / speed["float_ms"])
    assert speed["file_bytes"] == path.stat().st_size
    assert set(record["quantization"]["facts"]["keep_float"]) == {
        "kinds", "float_ms", "integers_ms", "file_ms", "whole"
    }  # fmt: skip
    with pytest.raises(RecipeError, match="keep_float is 'all'"):
        dc.export(net, path, example=IMAGES, quantize="int8", calibration=IMAGES, keep_float="all")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="keep_float is for a quantized file"):
        dc.export(net, path, example=IMAGES, keep_float="auto")


def test_keeping_binds_a_step_to_its_machine_and_is_no_part_of_others() -> None:
    assert "keep_float" not in Quantize(name="q").plain()
    assert not Quantize(name="q").depends_on_machine
    assert Quantize(name="q", keep_float="auto").depends_on_machine
    assert Quantize.parse(Quantize(name="q", keep_float="auto").plain()).keep_float == "auto"

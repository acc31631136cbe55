"""Models whose first operation is in place: nothing that they write reaches the user's tensors, another model, or the
keys under which answers are stored. What is right is said by the same models with a copy in front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import decoct as dc
from decoct.data.views import seen_of
from decoct.outputs import Batch
from decoct.store.reading import Store

TASK = "tabular_classification"
SHORT: dict[str, Any] = {"task": TASK, "epochs": 2, "log_every": 1, "select": "last"}


class Net(nn.Module):
    """A linear net that centres its input, in place or not."""

    def __init__(self, seed: int, width: int = 12, *, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.in_place = in_place
        self.body = nn.Sequential(nn.ReLU(inplace=in_place), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5) if self.in_place else x - 0.5
        logits: Tensor = self.body(x)
        return logits


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(5)
    return [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(count)]


def copies(data: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x.clone(), y.clone()) for x, y in data]


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_distill_is_that_of_models_that_do_not_write(tmp_path: Path) -> None:
    data, found = batches(), {}
    for in_place in (False, True):
        given = copies(data)
        teacher, student = Net(1, in_place=in_place), Net(2, 6, in_place=in_place)
        made = dc.distill(teacher, student, given, given, out=tmp_path / str(in_place), **SHORT)
        found[in_place] = made.student.state_dict()
        assert same(given, data)
    for name, value in found[False].items():
        assert torch.equal(value, found[True][name]), name


def test_a_distiller_gives_the_same_loss(tmp_path: Path) -> None:
    x, y = batches(1)[0]
    kept, losses = x.clone(), []
    for in_place in (False, True):
        teachers = {"a": Net(1, in_place=in_place), "b": Net(3, in_place=in_place)}
        objective = dc.KD(teacher="a", name="a") + dc.KD(teacher="b", name="b") + dc.CrossEntropy()
        with dc.Distiller(teachers, Net(2, 6, in_place=in_place), objective, task=TASK) as distiller:
            for _ in range(2):
                loss, parts = distiller(x, y)
                losses.append(torch.stack([loss, *parts.values()]))
        assert torch.equal(x, kept)
    assert all(torch.equal(each, losses[0]) for each in losses)


def test_a_store_holds_answers_under_what_the_loader_gives(tmp_path: Path) -> None:
    data = batches()
    given, teacher = copies(data), Net(1, in_place=True)
    store = Store.open(dc.label(teacher, given, tmp_path / "store", task=TASK, dtype="float32").folder)
    assert same(given, data)
    with torch.no_grad():
        for x, _ in data:
            seen = seen_of(Batch({"teacher": x}))
            expected = Net(1, in_place=False).eval()(x)
            torch.testing.assert_close(store.read(seen).logits, expected, rtol=1e-6, atol=1e-6)


def test_prune_and_export_leave_the_example(tmp_path: Path) -> None:
    x, net = batches(1)[0][0], Net(1, 32, in_place=True).eval()
    kept = x.clone()
    plain = Net(1, 32, in_place=False).eval()
    small = dc.prune(net, example=x)
    assert torch.equal(x, kept)
    assert [tuple(each.shape) for each in small.parameters()] == [
        tuple(each.shape) for each in dc.prune(plain, example=x).parameters()
    ]
    record = dc.export(net, tmp_path / "net.onnx", example=x)
    dc.export(net, tmp_path / "int8.onnx", example=x, quantize="int8", calibration=x)
    assert torch.equal(x, kept)
    assert record["verified"]["max_abs_diff"] < 1e-5
    import onnxruntime

    (found,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": x.numpy()})
    np.testing.assert_allclose(found, plain(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_function_that_writes_into_its_rows(tmp_path: Path) -> None:
    data = batches()
    given = copies(data)

    def ask(rows: list[Any]) -> list[int]:
        found = [int(np.asarray(row).argmax()) % 3 for row in rows]
        for row in rows:
            row *= 0
        return found

    task = dc.TabularClassification(raw=True, classes=("a", "b", "c"))
    dc.distill(ask, Net(2, 6, in_place=False), given, given, **{**SHORT, "task": task}, out=tmp_path)
    assert same(given, data)

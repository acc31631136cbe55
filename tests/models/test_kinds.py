"""Modules of other kinds in export, pruning and QAT: they work, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import decoct as dc
from decoct.errors import RecipeError
from decoct.quantization.aware.fake_quantize import FakeQuantize
from decoct.training.compression import Evidence

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers; its answer in one of several forms."""

    def __init__(self, form: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x).relu())
        return found

    def forward(self, x: Tensor) -> Any:
        return self.form(self.logits(x))


def with_body(change: Callable[[nn.Module], Any]) -> Net:
    net = Net()
    change(net.body)
    return net


@pytest.mark.parametrize("form", [lambda y: {"logits": y, "aux": 2 * y}, lambda y: {"out": y}])
def test_mappings_with_logits_are_exported(form: Any, tmp_path: Path) -> None:
    net = Net(form).eval()
    dc.export(net, tmp_path / "a.onnx", example=X)
    (found,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"input": X.numpy()})
    np.testing.assert_allclose(found, net.logits(X).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (lambda y: (y, 2 * y), "a tuple of 2"),
        (lambda y: [y], "a list of 1"),
        (lambda y: {"scores": y}, "a mapping with scores"),
    ],
)
def test_other_answers_are_named(form: Any, named: str, tmp_path: Path) -> None:
    for quantize in ({}, {"quantize": "int8", "calibration": X}):
        with pytest.raises(RecipeError, match=f"the model returned {named}"):
            dc.export(Net(form), tmp_path / "a.onnx", example=X, **quantize)
    assert not list(tmp_path.iterdir())


CLOSED: dict[str, Callable[[], nn.Module]] = {
    "RecursiveScriptModule": lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))),
    "TopLevelTracedModule": lambda: torch.jit.trace(Net(), X),
    "OptimizedModule": lambda: torch.compile(Net()),
    "DataParallel": lambda: nn.DataParallel(Net()),
    "torch.ao": lambda: torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CLOSED)
def test_modules_that_cannot_be_taken_apart_are_refused(kind: str, tmp_path: Path) -> None:
    net = CLOSED[kind]()
    with pytest.raises(RecipeError, match=rf"^export: .*{kind}.*give"):
        dc.export(net, tmp_path / "a.onnx", example=X)
    with pytest.raises(RecipeError, match=rf"^prune: .*{kind}.*give"):
        dc.prune(net, example=X)
    with pytest.raises(RecipeError, match=rf"^qat: .*{kind}.*give"):
        FakeQuantize().apply(net, Evidence((X,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    net, x, name = Net().to(dtype), X.to(dtype), str(dtype).removeprefix("torch.")
    with pytest.raises(RecipeError, match=rf"qat: body\.weight is {name}.*model\.float\(\)"):
        FakeQuantize().apply(net, Evidence((x,)))
    with pytest.raises(RecipeError, match=rf"static quantization: body\.weight is {name}.*model\.float\(\)"):
        dc.export(net, tmp_path / "a.onnx", example=x, quantize="int8", calibration=x.float())
    if dtype is torch.bfloat16:
        with pytest.raises(RecipeError, match=rf"export.*body\.weight is {name}"):
            dc.export(net, tmp_path / "a.onnx", example=x)


PARAMETRIZED: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": torch.nn.utils.weight_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
    "pruned by torch": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PARAMETRIZED)
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_weights_made_of_other_tensors(kind: str, activations: Any) -> None:
    """Old forms make the weight before each call of the layer, which a quantized layer never is: it would stand."""
    net = with_body(PARAMETRIZED[kind])
    net(X)
    with pytest.raises(RecipeError, match=r"qat: the weights of body are made of other tensors.*bake them first"):
        FakeQuantize(activations=activations).apply(net, Evidence((X,)))
    made = FakeQuantize(activations="dynamic", protect=("body",)).apply(net, Evidence((X,))).module
    made(X).sum().backward()
    with pytest.raises(RecipeError, match=r"baked first \(remove_parametrizations\): body"):
        dc.prune(net, example=X)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_weights_made_of_other_tensors_are_exported_as_they_are(kind: str, tmp_path: Path) -> None:
    net = with_body(PARAMETRIZED[kind]).eval()
    net(X)
    dc.export(net, tmp_path / "a.onnx", example=X)
    (found,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"input": X.numpy()})
    np.testing.assert_allclose(found, net(X).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_teacher_that_ran_before_is_copied(tmp_path: Path) -> None:
    """Its weight is then no leaf of a graph, which torch does not copy."""
    net = with_body(PARAMETRIZED["old weight_norm"])
    net(X)
    data = [(X, torch.randint(0, 3, (8,)))]
    task: dict[str, Any] = {"task": "tabular_classification", "epochs": 1, "select": "last"}
    found = dc.distill(net, Net(), data, out=tmp_path, **task)
    assert found.student(X).shape == (8, 3)

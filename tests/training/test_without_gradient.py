"""Terms whose features have a value and no gradient are refused: which path, why, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import decoct as dc
from decoct.errors import RecipeError

TASK = "tabular_classification"


class Net(nn.Module):
    """Three layers, the first two of which may lose the gradient."""

    def __init__(self, how: str = "", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.how = how
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        if how == "frozen":
            self.first.requires_grad_(False)

    def body(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                h = self.body(x)
        elif self.how in ("reentrant", "kept"):
            reentrant = self.how == "reentrant"
            h = checkpoint(self.body, x.requires_grad_() if reentrant else x, use_reentrant=reentrant)
        else:
            h = self.first(x)
            h = self.second((h.detach() if self.how == "detached" else h).relu())
        logits: Tensor = self.last(h.relu())
        return logits


class Cut(nn.Linear):
    """A layer that detaches what it gives."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 4), torch.randint(0, 3, (6,))


def distilled(student: nn.Module, path: str) -> dict[str, Tensor]:
    """Gradients of one step, of a feature term on a path beside KD."""
    x, y = batch()
    objective = dc.KD() + dc.HiddenMSE(layers={path: path})
    with dc.Distiller(Net(), student, objective, task=TASK, example=x) as distiller:
        loss, _ = distiller(x, y)
        loss.backward()
    return {name: each.grad for name, each in student.named_parameters() if each.grad is not None}


@pytest.mark.parametrize(
    ("how", "path", "reason"),
    [
        ("reentrant", "second", "reentrant activation checkpointing.*use_reentrant=False"),
        ("no_grad", "first", r"torch\.no_grad\(\); choose a layer outside"),
        ("frozen", "first", "frozen; choose a later layer, or unfreeze"),
    ],
)
def test_features_without_a_gradient_are_refused(how: str, path: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=rf"feature '{path}' has a value and no gradient.*{reason}"):
        distilled(Net(how), path)


def test_a_layer_that_detaches_itself_is_refused() -> None:
    net = Net()
    net.second = Cut(8, 8)
    with pytest.raises(RecipeError, match=r"'second'.*cut off from its own parameters inside"):
        distilled(net, "second")


@pytest.mark.parametrize(
    ("how", "path"), [("", "first"), ("kept", "second"), ("frozen", "second"), ("detached", "first")]
)
def test_features_with_a_gradient_are_taken(how: str, path: str) -> None:
    """What the same net without tricks learns; after `.detach()` the layer before it still learns from its feature."""
    found = distilled(Net(how), path)
    assert f"{path}.weight" in found
    if how == "kept":
        expected = distilled(Net(), path)
        assert all(torch.allclose(found[name], each) for name, each in expected.items())


def test_what_a_step_trains_is_refused_alike(tmp_path: Path) -> None:
    data = [batch()]
    with pytest.raises(RecipeError, match="feature 'first' has a value and no gradient"):
        dc.distill(
            Net(), Net("frozen"), data, task=TASK, epochs=1, select="last", out=tmp_path,
            objective=dc.KD() + dc.HiddenMSE(layers={"first": "first"}),
        )  # fmt: skip


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_a_student_that_learns_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the loss has no gradient.*detaches what it gives"):
        dc.distill(Net(), Detached(), [batch()], task=TASK, epochs=1, select="last", out=tmp_path)


def test_logits_that_were_detached_beside_features_that_learn() -> None:
    with pytest.raises(RecipeError, match="kd: this term has a value and no gradient"):
        distilled(Detached(seed=2), "first")


def test_an_adapter_that_learns_alone_is_refused() -> None:
    """Its loss would fall and the student learn nothing."""
    x, _ = batch()
    whole = torch.no_grad()(Net.forward)
    student = type("Whole", (Net,), {"forward": whole})()
    objective = dc.Hint(layers={"first": "first"}, adapter="linear")
    distiller = dc.Distiller(Net(), student, objective, task=TASK, example=x)
    with distiller, pytest.raises(RecipeError, match=r"'first'.*no_grad"):
        distiller(x)


def test_nothing_is_asked_where_no_gradient_is_wanted() -> None:
    x, y = batch()
    objective = dc.KD() + dc.HiddenMSE(layers={"first": "first"})
    with dc.Distiller(Net(), Net("frozen"), objective, task=TASK, example=x) as distiller, torch.no_grad():
        loss, _ = distiller(x, y)
    assert loss.item() >= 0

"""Files of weights: strict, clearly refused, and never unpickled here."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from decoct.errors import DataError, RecipeError
from decoct.models.base import Interface
from decoct.models.file import File
from decoct.models.mlp import MLP
from decoct.models.weights import fill, mismatches, read_weights

TABLE = Interface(kind="tabular", shape=(4,), outputs=2)
SPEC = MLP(hidden=(3,))


@pytest.fixture
def net() -> nn.Module:
    return SPEC.build(TABLE)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_safetensors(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(net.state_dict(), path)
    spec = File(path=path, model="mlp").replace(model=SPEC)
    assert same(spec.build(TABLE), net)
    assert not same(spec.build(TABLE, pretrained=False), net)
    assert spec.standalone(TABLE) == SPEC
    assert File.parse(spec.plain()) == spec
    before = spec.fingerprint()
    save_file({**net.state_dict(), "head.bias": torch.ones(2)}, path)
    assert spec.fingerprint() != before


@pytest.mark.parametrize("wrap", [False, True])
def test_torch_files_of_trainers(net: nn.Module, tmp_path: Path, wrap: bool) -> None:
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()} if wrap else net.state_dict()
    torch.save({"epoch": 3, "state_dict": state} if wrap else state, tmp_path / "w.pth")
    assert same(File(path=tmp_path / "w.pth", model=SPEC).build(TABLE), net)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_does_not(tmp_path: Path) -> None:
    torch.save({"head.weight": Bomb(tmp_path / "hit")}, tmp_path / "bomb.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "hit")))
    for name in ("bomb.pt", "plain.pt"):
        with pytest.raises(DataError, match="not readable as plain weights"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "hit").exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nonsense" * 9)
    torch.save({"epoch": 3}, tmp_path / "b.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    for name, message in {
        "a.safetensors": "damaged",
        "b.pt": "holds no tensors but 'epoch'",
        "c.pt": "holds a list, no state dict",
        "absent.safetensors": "no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            read_weights(tmp_path / name)


def test_misfits_are_named_with_the_nearest(net: nn.Module) -> None:
    good = dict(net.state_dict())
    bad = {**good, "head.wieght": good["head.weight"], "hidden.0.0.bias": torch.zeros(7)}
    del bad["head.weight"]
    found = "; ".join(mismatches(good, bad))
    assert "missing head.weight [2, 3] (the file has head.wieght [2, 3])" in found
    assert "unexpected head.wieght [2, 3]" in found
    assert "hidden.0.0.bias is [7], [3] is needed" in found
    with pytest.raises(RecipeError, match=r"w\.pt does not fit MLPNet: missing"):
        fill(net, good, bad, "w.pt")
    assert mismatches(good, good) == []


def test_a_shared_tensor_needs_one_of_its_names() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    fill(net, net.state_dict(keep_vars=True), {"1.weight": torch.eye(2)}, "w")
    assert torch.equal(net[0].weight, torch.eye(2))

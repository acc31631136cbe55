"""Saving and loading: given models, shared tensors, refusals by path."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from decoct.artifact import Artifact, writing
from decoct.errors import CannotRebuild, IntegrityError, RecipeError
from decoct.models.base import Interface, Model
from decoct.models.file import File
from decoct.models.given import GivenModel, fresh, given_model, instance
from decoct.models.mlp import MLP
from decoct.models.saving import load_model, save_model
from decoct.models.small_resnet import SmallResNet

TABLE = Interface(kind="tabular", shape=(4,), outputs=2)
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Mine(nn.Module):
    """A user's class, with a buffer outside its state dict and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.rand(4), persistent=False)
        self.half = self.head.weight.detach().t()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.second(self.first(x) * self.scale)))


def save(folder: Path, module: nn.Module, spec: Model, **given: Any) -> Artifact:
    with writing(folder, kind="model", name="m") as draft:
        save_model(draft, module, spec, TABLE, side="student", probe=lambda each: [each(X)], given=given)
    return Artifact.load(folder)


def test_given_instance_and_factory(tmp_path: Path) -> None:
    original = Mine()
    spec = given_model("small", original)
    trained = instance(spec, {"small": original})
    with torch.no_grad():
        for each in trained.parameters():
            each.add_(1.0)
        trained.scale.mul_(2)
    artifact = save(tmp_path / "a", trained, spec, small=original)
    kept = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    for source in (original, Mine):
        again = load_model(artifact, given={"small": source}).module
        assert isinstance(again, Mine)
        assert again is not original
        assert not again.training
        assert torch.equal(again(X), trained.eval()(X))
        assert again.first.weight is again.second.weight
        assert torch.equal(again.scale, trained.scale)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in original.state_dict().items())
    with safe_open(artifact.file("model.safetensors"), "pt") as file:
        assert sorted(file.keys()) == ["first.weight", "head.bias", "head.weight", "scale"]
    assert artifact.json("model.json")["aliases"] == {"second.weight": "first.weight"}


def test_given_that_is_not_passed_or_wrong(tmp_path: Path) -> None:
    artifact = save(tmp_path / "a", Mine(), given_model("small", Mine()), small=Mine)
    for given, message in (
        ({}, r"'small' came from Python .* given=\{'small': \.\.\.\} \(its class is .*Mine\)"),
        ({"smal": Mine}, "did you mean smal"),
        ({"small": nn.Linear(4, 2)}, "is a torch.nn.modules.linear.Linear, the model was a"),
        ({"small": 3}, "is a int; pass a module"),
        ({"small": lambda: 3}, "returned a int"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_model(artifact, given=given)
    with pytest.raises(RecipeError, match="came from Python"):
        GivenModel(name="small").build(TABLE)


def test_fingerprints_tell_models_apart() -> None:
    torch.manual_seed(0)
    one, other = Mine(), Mine()
    spec = given_model("small", one)
    assert spec == given_model("small", one)
    assert spec.fingerprint != given_model("small", other).fingerprint
    other.load_state_dict(one.state_dict())
    other.scale.copy_(one.scale)
    assert spec == given_model("small", other)
    other.head = nn.Linear(4, 3)
    assert spec != given_model("small", other)
    assert eval(repr(spec)) == spec


def test_fresh_builds_or_takes_what_was_given() -> None:
    module = Mine()
    assert torch.equal(fresh(given_model("m", module), TABLE, {"m": module}).first.weight, module.first.weight)
    assert fresh(MLP(hidden=(3,)), TABLE, {}).head.in_features == 3


def test_a_pruned_model_of_a_file_needs_no_file_again(tmp_path: Path) -> None:
    inner = MLP(hidden=(3,))
    torch.save(inner.build(TABLE).state_dict(), tmp_path / "w.pt")
    spec = File(path=tmp_path / "w.pt", model=inner)
    module = spec.build(TABLE)
    module.hidden[0][0], module.head = nn.Linear(4, 2), nn.Linear(2, 2)
    artifact = save(tmp_path / "a", module, spec)
    (tmp_path / "w.pt").unlink()
    assert torch.equal(load_model(artifact).module(X), module(X))


def test_what_would_not_come_back_is_refused(tmp_path: Path) -> None:
    spec = MLP(hidden=(3,))
    hooked = spec.build(TABLE)
    hooked.hidden[0][0].register_forward_hook(lambda module, args, output: output + 1)
    lazy = spec.build(TABLE)
    lazy.head = nn.LazyLinear(2)
    meta = spec.build(TABLE)
    meta.head.to("meta")
    for module, message in (
        (hooked, r"hidden\.0\.0: rebuilt from its description it answers otherwise"),
        (lazy, "head: a .*LazyLinear cannot be written down"),
        (meta, r"head\.weight: it holds no numbers"),
    ):
        with pytest.raises(CannotRebuild, match=message):
            save(tmp_path / "a", module, spec)
    assert list(tmp_path.iterdir()) == []


def test_modes_and_random_state_are_left_alone(tmp_path: Path) -> None:
    spec = MLP(hidden=(3, 3), dropout=0.5)
    module = spec.build(TABLE)
    module.hidden[1].eval()
    modes = [each.training for each in module.modules()]
    state = torch.get_rng_state()
    load_model(save(tmp_path / "a", module, spec))
    assert [each.training for each in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(each._forward_hooks for each in module.modules())


def test_half_precision_and_integers_keep_their_types(tmp_path: Path) -> None:
    spec = MLP(hidden=(3,))
    module = spec.build(TABLE)
    module.head.to(torch.bfloat16)
    module.register_buffer("count", torch.tensor(3))
    with writing(tmp_path / "a", kind="model", name="m") as draft:
        save_model(draft, module, spec, TABLE, side="teacher")
    again = load_model(Artifact.load(tmp_path / "a")).module
    assert again.head.weight.dtype is torch.bfloat16
    assert again.count == 3
    assert again.state_dict().keys() == module.state_dict().keys()


def test_memory_layout_is_no_structure(tmp_path: Path) -> None:
    """Weights at other addresses or channels last may round otherwise; they are saved, and left as they are."""
    interface = Interface(kind="image", shape=(3, 8, 8), outputs=2)
    spec = SmallResNet(width=12)
    module = spec.build(interface).to(memory_format=torch.channels_last)
    head = torch.empty(module.head.weight.numel() + 1)[1:].view_as(module.head.weight)
    head.copy_(module.head.weight.detach())
    module.head.weight.data = head
    x = torch.randn(1, 3, 8, 8)
    with writing(tmp_path / "a", kind="model", name="m") as draft:
        save_model(draft, module, spec, interface, side="student", probe=lambda each: [each(x)])
    assert module.head.weight.data_ptr() == head.data_ptr()
    assert module.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(load_model(Artifact.load(tmp_path / "a")).module(x), module.eval()(x))


def test_damage_and_other_kinds(tmp_path: Path) -> None:
    spec = MLP(hidden=(3,))
    artifact = save(tmp_path / "a", spec.build(TABLE), spec)
    path = artifact.file("model.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors is damaged"):
        Artifact.load(tmp_path / "a")
    with writing(tmp_path / "b", kind="records", name="b"):
        pass
    with pytest.raises(RecipeError, match="records artifact, no model"):
        load_model(Artifact.load(tmp_path / "b"))


@pytest.mark.parametrize(
    "change",
    [lambda outputs: torch.nextafter(outputs, torch.full_like(outputs, torch.inf)), lambda outputs: outputs.double()],
    ids=["one unit in the last place", "another type"],
)
def test_what_answers_otherwise_by_the_least_is_refused(tmp_path: Path, change: Any) -> None:
    spec = MLP(hidden=(3,))
    module = spec.build(TABLE)
    save(tmp_path / "plain", module, spec)
    module.head.register_forward_hook(lambda hooked, args, outputs: change(outputs))
    with pytest.raises(CannotRebuild, match="head: rebuilt from its description it answers otherwise"):
        save(tmp_path / "a", module, spec)
    assert [each.name for each in tmp_path.iterdir()] == ["plain"]


def test_not_a_number_at_the_same_places_is_the_same_answer(tmp_path: Path) -> None:
    spec = MLP(hidden=(3,))
    module = spec.build(TABLE)
    with torch.no_grad():
        module.head.bias[0] = torch.nan
    assert torch.equal(
        load_model(save(tmp_path / "a", module, spec)).module(X).isnan().any(0), torch.tensor([True, False])
    )
    module.head.register_forward_hook(lambda hooked, args, outputs: outputs.nan_to_num())
    with pytest.raises(CannotRebuild, match="answers otherwise"):
        save(tmp_path / "b", module, spec)


class Overlapping(nn.Module):
    """Built anew, two buffers lie in one memory; one of them is given memory of its own later."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.register_buffer("row", torch.zeros(4))
        self.register_buffer("square", self.row.view(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.row)


def test_numbers_that_would_overwrite_each_other_are_refused_without_a_probe_too(tmp_path: Path) -> None:
    spec = given_model("small", Overlapping())
    module = Overlapping()
    module.square = torch.ones(2, 2)
    with (
        pytest.raises(CannotRebuild, match="row: its values were not kept"),
        writing(tmp_path / "a", kind="model", name="m") as draft,
    ):
        save_model(draft, module, spec, TABLE, side="student", given={"small": Overlapping})
    assert list(tmp_path.iterdir()) == []

"""Layers shared across depth: true aliases, stored once in real files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from decoct.api.export import export
from decoct.artifact import Artifact, writing
from decoct.errors import PathError, RecipeError
from decoct.models.base import Interface
from decoct.models.saving import load_model, save_model
from decoct.models.small_resnet import SmallResNet
from decoct.sharing.layers import SharedLayers
from decoct.training.compression import Evidence

NONE = Evidence(())
INTERFACE = Interface(kind="image", shape=(1, 8, 8), outputs=10)
SPEC = SmallResNet(width=12, depths=(3, 4))


def net() -> nn.Module:
    torch.manual_seed(0)
    return SPEC.build(INTERFACE).eval()


def saved(folder: Path, module: nn.Module) -> Artifact:
    x = torch.randn(4, 1, 8, 8)
    with writing(folder, kind="model", name="small", key="0", lineage={}) as draft:
        save_model(draft, module, SPEC, INTERFACE, side="student", probe=lambda each: [each(x)])
    return Artifact.load(folder)


class Encoder(nn.Module):
    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).layers
        for each in self.layers.parameters():
            nn.init.normal_(each, std=0.1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("how", ["mean", "first"])
def test_neighbours_share_the_mean_or_the_first(how):
    module = Encoder(5)
    made = SharedLayers(groups=2, how=how).apply(module, NONE)
    layers, old = made.module.layers, module.layers
    for part in ((0, 1, 2), (3, 4)):
        for name, each in old[part[0]].named_parameters():
            members = [old[i].get_parameter(name).detach().numpy().astype(np.float64) for i in part]
            expected = np.mean(members, axis=0) if how == "mean" else members[0]
            for i in part:
                found = layers[i].get_parameter(name)
                assert found is layers[part[0]].get_parameter(name)
                np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6, atol=1e-8)
            assert old[part[1]].get_parameter(name) is not each
    assert [(c.path, c.kind, c.before, c.after) for c in made.changes] == [("layers", "layers", 5, 2)]


def test_files_hold_shared_weights_once_and_answer_as_torch(tmp_path):
    module = net()
    made = SharedLayers(groups=1).apply(module, NONE).module
    small, whole = saved(tmp_path / "small", made), saved(tmp_path / "whole", module)
    sizes = [each.file("model.safetensors").stat().st_size for each in (small, whole)]
    shared = [made.layer1[i].conv1.weight for i in range(3)]
    assert shared[0] is shared[1] is shared[2]
    assert made.layer1[0].bn1.weight is not made.layer1[1].bn1.weight
    spared = 4 * sum(
        block.get_parameter(name).numel()
        for block in (made.layer1[1], made.layer1[2], made.layer2[2], made.layer2[3])
        for name in ("conv1.weight", "conv2.weight")
    )
    assert sizes[1] - sizes[0] == pytest.approx(spared, abs=3000)
    x = torch.randn(5, 1, 8, 8)
    again = load_model(small).module
    assert torch.equal(again(x), made(x))
    assert again.layer1[0].conv1.weight is again.layer1[2].conv1.weight
    files = [export(each, tmp_path / f"{i}.onnx", example=x) for i, each in enumerate((made, module))]
    assert files[0]["file_bytes"] < files[1]["file_bytes"]
    assert files[0]["verified"]["max_abs_diff"] < 1e-4


def test_an_encoder_is_stored_once_in_onnx(tmp_path):
    module = Encoder(3)
    made = SharedLayers().apply(module, NONE).module.eval()
    x = torch.randn(2, 5, 48)
    small = export(made, tmp_path / "small.onnx", example=x)
    whole = export(module.eval(), tmp_path / "whole.onnx", example=x)
    layer = sum(each.numel() for each in module.layers[0].parameters())
    assert whole["file_bytes"] - small["file_bytes"] > 0.9 * 2 * 4 * layer
    assert small["parameters"] == layer


def test_a_shared_weight_learns_from_all_its_places():
    made = SharedLayers().apply(Encoder(3), NONE).module.train()
    count = len(list(made.parameters()))
    assert count == len(list(made.layers[0].parameters()))
    made(torch.randn(2, 4, 48)).square().sum().backward()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    optimizer.step()
    assert torch.equal(made.layers[0].linear1.weight, made.layers[2].linear1.weight)


def test_groups_by_path_and_what_is_wrong_with_them():
    made = SharedLayers(groups=(("layer1.0", "layer1.2"),)).apply(net(), NONE).module
    assert made.layer1[0].conv1.weight is made.layer1[2].conv1.weight
    assert made.layer1[0].conv1.weight is not made.layer1[1].conv1.weight
    with pytest.raises(PathError, match="did you mean layer1"):
        SharedLayers(groups=(("layer1.0", "layer1.9"),)).apply(net(), NONE)
    with pytest.raises(RecipeError, match=r"layer2.1 and layer2.0 differ in class, shape or settings"):
        SharedLayers(groups=(("layer2.0", "layer2.1"),)).apply(net(), NONE)
    with pytest.raises(RecipeError, match="nothing can be shared"):
        SharedLayers(groups=4).apply(net(), NONE)
    with pytest.raises(RecipeError, match="no two blocks"):
        SharedLayers().apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), NONE)
    kept = SharedLayers(protect=("layer1.1",)).apply(net(), NONE).module
    assert kept.layer1[0].conv1.weight is kept.layer1[2].conv1.weight
    assert kept.layer1[0].conv1.weight is not kept.layer1[1].conv1.weight


def test_what_is_protected_is_shared_by_no_group() -> None:
    groups = (("layer2.1", "layer2.2"),)
    with pytest.raises(RecipeError, match=r"groups names layer2.1, and protect keeps"):
        SharedLayers(groups=groups, protect=("layer2.1.conv1",)).apply(net(), NONE)
    made = SharedLayers(groups=groups, protect=("layer2.3",)).apply(net(), NONE).module
    assert made.layer2[1].conv1.weight is made.layer2[2].conv1.weight
    apart = SharedLayers(protect=("layer2.2.conv1",)).apply(net(), NONE).module
    assert apart.layer2[1].conv1.weight is apart.layer2[3].conv1.weight
    assert apart.layer2[1].conv2.weight is not apart.layer2[2].conv2.weight

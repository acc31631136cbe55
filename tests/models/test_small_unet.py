"""The U-Net: maps of images of any size, what each stage sees, the ONNX file; torchvision's networks for maps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from decoct.errors import RecipeError
from decoct.models.calls import ImageProgram, logits_of, outputs_of
from decoct.models.interface import Interface, Port, Program
from decoct.models.small_unet import SmallUNet
from decoct.models.torchvision import Torchvision, transplant
from decoct.targets.onnx import Onnx


def interface(classes: int = 5, height: int = 12, width: int = 20, channels: int = 3) -> Interface:
    port = Port(kind="image", shape=(channels, height, width), axes={0: "batch"})
    maps = Port(kind="logits", shape=(None, None, classes), axes={0: "batch"})
    return Interface(kind="image", inputs={"image": port}, outputs={"logits": maps})


@pytest.mark.parametrize(("height", "width"), [(12, 20), (13, 7), (4, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_maps_of_images_of_any_size_also_odd_ones(height: int, width: int, stride: int) -> None:
    net = SmallUNet(widths=(3, 4, 5), stem_stride=stride).build(interface(height=height, width=width)).eval()
    half = (-(-height // stride), -(-width // stride))
    assert net(torch.randn(2, 3, height, width)).shape == (2, 5, *half)


def test_parameters_are_as_many_as_its_convolutions_have() -> None:
    """Each of the two convolutions has 9 weights by input and output, its norm two numbers a channel."""

    def pair(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs

    net = SmallUNet(widths=(6, 10, 16)).build(interface())
    wanted = pair(3, 6) + pair(6, 10) + pair(10, 16) + pair(16 + 10, 10) + pair(10 + 6, 6) + (6 + 1) * 5
    assert sum(each.numel() for each in net.parameters()) == wanted


def test_the_finest_stage_reaches_the_map_past_the_coarse_ones() -> None:
    """With the coarse way cut, a pixel of the image moves its own surroundings of 9 x 9 alone: two pairs of 3 x 3."""
    net = SmallUNet(widths=(3, 4)).build(interface()).eval()
    with torch.no_grad():
        net.get_parameter("up1.0.weight")[:, 3:] = 0
        image = torch.randn(1, 3, 12, 20)
        other = image.clone()
        other[0, :, 6, 10] += 5
        moved = (net(image) != net(other)).any(1)[0].nonzero()
    assert moved.min(0).values.tolist() == [2, 6]
    assert moved.max(0).values.tolist() == [10, 14]


def test_the_file_equals_the_net_for_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SmallUNet(widths=(3, 4, 5)).build(interface(height=11, width=14))
    net(torch.randn(8, 3, 11, 14))
    program = ImageProgram(torch.nn.Identity(), net).eval()
    example = {"image": torch.zeros(2, 3, 11, 14)}
    outputs = {"logits": Port(kind="logits")}
    written = Onnx().write({"model": Program(program, example, {"image": {0: "batch"}}, outputs)}, tmp_path)["model"]
    for count in (1, 3):
        x = torch.randn(count, 3, 11, 14)
        with torch.no_grad():
            np.testing.assert_allclose(Onnx().load(written)({"image": x.numpy()})["logits"], net(x), atol=1e-5)


def test_networks_of_torchvision_answer_at_each_pixel() -> None:
    wanted = interface(classes=4, height=40, width=56, channels=1)
    net = Torchvision("lraspp_mobilenet_v3_large").build(wanted).eval()
    raw = net(torch.randn(2, 1, 40, 56))
    assert set(raw) == {"out"}
    found = outputs_of(raw, wanted)
    assert torch.equal(found.logits, raw["out"].permute(0, 2, 3, 1))
    assert torch.equal(logits_of({"out": raw["out"], "logits": raw["out"][:1]}), raw["out"][:1])


def test_published_weights_fill_all_but_the_last_layers() -> None:
    wanted = interface(classes=21, height=32, width=32)
    published = Torchvision("lraspp_mobilenet_v3_large").build(wanted)
    net = Torchvision("lraspp_mobilenet_v3_large").build(interface(classes=3, height=32, width=32))
    before = {name: each.clone() for name, each in net.state_dict().items()}
    transplant(net, dict(published.state_dict()), "lraspp_mobilenet_v3_large")
    for name, each in net.state_dict().items():
        last = name.startswith(("classifier.low_classifier", "classifier.high_classifier"))
        assert torch.equal(each, before[name] if last else published.state_dict()[name]), name


def test_a_name_of_the_other_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no network for maps 'resnet18'; did you mean .*resnet"):
        Torchvision("resnet18").build(interface())
    whole = Interface(kind="image", shape=(3, 32, 32), outputs=2)
    with pytest.raises(RecipeError, match="no classifier 'fcn_resnet50'"):
        Torchvision("fcn_resnet50").build(whole)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_further_networks_build_without_a_download(name: str) -> None:
    net = Torchvision(name).build(interface(classes=3, height=32, width=32))
    assert net.training
    assert not [each for each, _ in net.named_parameters() if each.startswith("aux")]

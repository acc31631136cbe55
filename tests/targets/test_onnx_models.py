"""The nets that ship, exported through their tasks' programs: text of any length, images."""

from pathlib import Path

import numpy as np
import pytest
import torch

import decoct as dc
from decoct.models.base import Interface, Model
from decoct.models.bilstm import BiLSTM
from decoct.models.calls import ImageProgram, TextProgram
from decoct.models.interface import Port
from decoct.models.onnx_file import open_session
from decoct.models.small_mobilenet import SmallMobileNet
from decoct.models.small_resnet import SmallResNet
from decoct.models.small_vit import SmallViT
from decoct.models.transformers import Transformers
from decoct.targets.onnx import Onnx
from shipped import written

BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.mark.parametrize(
    "spec",
    [
        BiLSTM(embedding=6, hidden=5),
        BiLSTM(embedding=6, hidden=5, layers=2),
        Transformers(config=BERT),
        Transformers(config=BERT, attention="eager"),
    ],
)
def test_text_nets_at_any_length_and_padding(tmp_path: Path, spec: Model) -> None:
    torch.manual_seed(0)
    interface = Interface(kind="text", shape=(20,), outputs=3, vocabulary=30, padding=0)
    program = TextProgram(spec.build(interface)).eval()
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    path = written(Onnx(), program, example, tmp_path, {name: {0: "batch", 1: "length"} for name in example})
    session = Onnx().load(path)
    for batch, length in ((1, 1), (1, 20), (4, 6)):
        ids = torch.randint(1, 30, (batch, length))
        mask = (torch.arange(length) < torch.randint(1, length + 1, (batch, 1))).long()
        with torch.no_grad():
            expected = program(input_ids=ids * mask, attention_mask=mask).numpy()
        found = session({"input_ids": (ids * mask).numpy(), "attention_mask": mask.numpy()})["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("spec", [SmallResNet(width=4), SmallMobileNet(), SmallViT(width=16, depth=1, heads=2)])
def test_image_nets(tmp_path: Path, spec: Model) -> None:
    torch.manual_seed(0)
    model = spec.build(Interface(kind="image", shape=(1, 16, 16), outputs=3))
    model(torch.randn(8, 1, 16, 16))
    program = ImageProgram(torch.nn.Identity(), model).eval()
    path = written(Onnx(), program, {"image": torch.zeros(2, 1, 16, 16)}, tmp_path, {"image": {0: "batch"}})
    x = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        np.testing.assert_allclose(Onnx().load(path)({"image": x.numpy()})["logits"], program(x).numpy(), atol=1e-4)


def test_a_recurrent_net_given_as_a_plain_module(tmp_path: Path) -> None:
    """Two inputs whose batches must agree: torch's own check of that has no place in the file."""
    interface = Interface(kind="text", outputs={"logits": Port(kind="logits", shape=(3,))}, vocabulary=50, padding=0)
    net = BiLSTM(embedding=8, hidden=8).build(interface).eval()
    ids = torch.randint(1, 50, (4, 7), generator=torch.Generator().manual_seed(0))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    record = dc.export(net, tmp_path / "net.onnx", example=example)
    assert record["verified"]["max_abs_diff"] < 1e-5
    [outputs] = open_session(tmp_path / "net.onnx")(
        {name: value[:1].numpy() for name, value in example.items()}
    ).values()
    torch.testing.assert_close(torch.from_numpy(outputs), net(ids[:1], torch.ones_like(ids[:1])).detach())

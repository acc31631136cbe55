"""The BiLSTM against torch's packed bidirectional LSTM, under padding, and exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from decoct.errors import RecipeError
from decoct.models.base import Interface
from decoct.models.bilstm import BiLSTM, BiLSTMNet

TEXT = Interface(kind="text", shape=(10,), outputs=3, vocabulary=20, padding=0)


def built(layers: int = 1) -> BiLSTMNet:
    torch.manual_seed(1)
    net = BiLSTM(embedding=5, hidden=4, layers=layers).build(TEXT)
    assert isinstance(net, BiLSTMNet)
    return net.eval()


def packed(net: BiLSTMNet, layers: int) -> nn.LSTM:
    """torch's own layer with the same weights."""
    own = nn.LSTM(5, 4, layers, batch_first=True, bidirectional=True)
    for i in range(layers):
        layer = net.get_submodule(f"layer{i + 1}")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(own, f"{name}_l{i}").data.copy_(getattr(layer.forwards, f"{name}_l0"))
            getattr(own, f"{name}_l{i}_reverse").data.copy_(getattr(layer.backwards, f"{name}_l0"))
    return own


@pytest.mark.parametrize("layers", [1, 2])
def test_equals_torch_on_packed_sequences(layers: int) -> None:
    net = built(layers)
    lengths = torch.tensor([7, 1, 4, 10])
    ids = torch.randint(1, 20, (4, 10))
    mask = (torch.arange(10) < lengths[:, None]).long()
    sequences = pack_padded_sequence(net.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(packed(net, layers)(sequences)[0], batch_first=True)
    pooled = [torch.cat([row[:n].mean(0), row[:n].amax(0)]) for row, n in zip(states, lengths.tolist(), strict=True)]
    expected = net.head(torch.stack(pooled))
    torch.testing.assert_close(net(input_ids=ids * mask, attention_mask=mask), expected, rtol=0, atol=1e-6)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_padding_never_changes_the_logits(data: st.DataObject) -> None:
    """Wherever it stands, how much of it there is, and whatever ids stand under it."""
    net = built(2)
    real = data.draw(st.lists(st.integers(1, 19), min_size=1, max_size=6))
    places = sorted(data.draw(st.lists(st.integers(0, 11), min_size=len(real), max_size=len(real), unique=True)))
    ids = torch.tensor([data.draw(st.lists(st.integers(0, 19), min_size=12, max_size=12))])
    mask = torch.zeros(1, 12, dtype=torch.long)
    ids[0, places], mask[0, places] = torch.tensor(real), 1
    alone = torch.tensor([real])
    expected = net(input_ids=alone, attention_mask=torch.ones_like(alone))
    torch.testing.assert_close(net(input_ids=ids, attention_mask=mask), expected, rtol=0, atol=1e-6)


def test_no_real_token_gives_the_bias() -> None:
    net = built()
    ids = torch.randint(1, 20, (2, 4))
    out = net(input_ids=ids, attention_mask=torch.zeros_like(ids))
    assert torch.equal(out, net.head.bias.expand(2, -1))


class Program(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.net(input_ids=input_ids, attention_mask=attention_mask)
        return out


@pytest.mark.filterwarnings("ignore")
def test_exports_with_dynamic_batch_and_length(tmp_path: Path) -> None:
    import onnxruntime

    net = built(2)
    ids = torch.randint(1, 20, (3, 8))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    program = torch.onnx.export(
        Program(net), (), kwargs=inputs, dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False
    )
    program.save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for size in ((1, 1), (5, 3), (2, 30)):
        ids = torch.randint(1, 20, size)
        mask = (torch.rand(size) > 0.4).long()
        expected = net(input_ids=ids, attention_mask=mask).detach().numpy()
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_needs_a_vocabulary() -> None:
    with pytest.raises(RecipeError, match="vocabulary"):
        BiLSTM().build(TEXT.replace(vocabulary=None))

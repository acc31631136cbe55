"""The ONNX target: parity with torch, dynamic axes, quiet, bytes without paths, errors that name the place."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from decoct.errors import IntegrityError, RecipeError
from decoct.targets.onnx import Onnx
from shipped import written


class Image(nn.Module):
    """uint8 pixels in, logits out; with batch norm and dropout, which must be in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(image.float() / 255))


class Text(nn.Module):
    """Ids and a mask of any length, with positions up to 16; the BiLSTM ignores the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.positions = nn.Parameter(torch.randn(1, 16, 6))
        self.lstm = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(self.embedding(input_ids) + self.positions[:, : input_ids.shape[1]])
        mask = attention_mask.unsqueeze(-1).float()
        return self.head((hidden * mask).sum(1) / mask.sum(1))


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)


IMAGE = {"image": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}
IMAGE_AXES = {"image": {0: "batch"}}


def trained_image() -> Image:
    torch.manual_seed(0)
    model = Image()
    for _ in range(3):
        model(torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8))
    return model


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_image_file_equals_torch_at_any_batch(tmp_path: Path, batch: int) -> None:
    model = trained_image()
    path = written(Onnx(), model, IMAGE, tmp_path, IMAGE_AXES)
    assert model.training, "the caller's module keeps its mode"
    session = Onnx().load(path)
    x = torch.randint(0, 256, (batch, 1, 8, 8), dtype=torch.uint8)
    out = session({"image": x.numpy()})
    assert list(out) == ["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(out["logits"], model.eval()(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 16)])
def test_text_file_takes_any_batch_and_length(tmp_path: Path, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Text().eval()
    example = {"input_ids": torch.zeros(2, 7, dtype=torch.int64), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    axes = {name: {0: "batch", 1: "length"} for name in example}
    path = written(Onnx(), model, example, tmp_path, axes)
    feed = {"input_ids": torch.randint(0, 20, shape), "attention_mask": torch.ones(shape, dtype=torch.int64)}
    session = Onnx().load(path)
    assert [port.shape for port in session.inputs] == [("batch", "length")] * 2
    with torch.no_grad():
        expected = model(**feed).numpy()
    np.testing.assert_allclose(session({k: v.numpy() for k, v in feed.items()})["logits"], expected, atol=1e-5)


def test_bytes_are_equal_hold_no_paths_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = trained_image()
    first = written(Onnx(), model, IMAGE, tmp_path / "a", IMAGE_AXES, output="values")
    second = written(Onnx(), model, IMAGE, tmp_path / "b", IMAGE_AXES, output="values")
    content = first.read_bytes()
    assert content == second.read_bytes()
    for trace in (b"site-packages", str(Path.cwd()).encode(), b".py", str(Path(__file__).parent).encode()):
        assert trace not in content
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in first.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("opset", [18, 20])
def test_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    path = written(Onnx(opset=opset), trained_image(), IMAGE, tmp_path, IMAGE_AXES)
    assert onnx.load(str(path)).opset_import[0].version == opset


@pytest.mark.parametrize(
    ("model", "words"),
    [(Around(Bessel()), ["bessel_j0", "layers.1"]), (Around(Branch()), ["layers.1", "Branch"]), (FixedBatch(), ["2"])],
)
def test_errors_name_operator_and_module(tmp_path: Path, model: nn.Module, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        written(Onnx(), model, {"x": torch.zeros(2, 4)}, tmp_path, {"x": {0: "batch"}})
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not list(tmp_path.iterdir())


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = written(Onnx(), trained_image(), IMAGE, tmp_path, IMAGE_AXES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        Onnx().load(path)
    with pytest.raises(IntegrityError, match="missing"):
        Onnx().load(tmp_path / "none.onnx")


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_layers_equal_torch(
    tmp_path: Path, layer: type[nn.Module], layers: int, bidirectional: bool, bias: bool
) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}
            self.first = layer(3, 4, batch_first=True, **options)
            self.second = layer(8 if bidirectional else 4, 4, **options)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, last = self.first(x)
            out, last = self.second(out.transpose(0, 1), last)
            return torch.cat([out[-1], (last[0] if isinstance(last, tuple) else last)[0]], 1)

    torch.manual_seed(0)
    model = Recurrent().eval()
    path = written(Onnx(), model, {"x": torch.zeros(2, 6, 3)}, tmp_path, {"x": {0: "batch", 1: "length"}})
    x = torch.randn(3, 9, 3)
    with torch.no_grad():
        np.testing.assert_allclose(Onnx().load(path)({"x": x.numpy()})["logits"], model(x).numpy(), atol=1e-5)


def test_an_example_of_one_sample_leaves_the_batch_free(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    path = written(Onnx(), module, {"input": torch.randn(1, 2, 2)}, tmp_path, {"input": {0: "batch"}})
    rows = torch.randn(5, 2, 2)
    found = Onnx().load(path)({"input": rows.numpy()})["logits"]
    np.testing.assert_allclose(found, module(rows).detach().numpy(), atol=1e-5)

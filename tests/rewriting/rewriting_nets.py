"""Networks that the tests of rewriting share, and what is asked of each rewritten one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoct.artifact import Artifact, writing
from decoct.models.base import Interface, Model
from decoct.models.calls import ImageProgram, TextProgram
from decoct.models.saving import load_model, save_model
from decoct.models.small_resnet import SmallResNet
from decoct.models.transformers import Transformers
from decoct.targets.onnx import Onnx
from decoct.training.compression import Evidence
from shipped import written

IMAGE = Interface(kind="image", shape=(1, 16, 16), outputs=3)
TEXT = Interface(kind="text", shape=(12,), outputs=3, vocabulary=40, padding=0)
RESNET = SmallResNet(width=8, depths=(1, 1))
BERT_CONFIG = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
BERT = Transformers(config=BERT_CONFIG)


def built(spec: Model, interface: Interface, seed: int = 0) -> nn.Module:
    """A fresh network in eval mode."""
    torch.manual_seed(seed)
    return spec.build(interface).eval()


def images(count: int = 4, seed: int = 1, size: int = 16, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(count: int = 3, length: int = 12, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length, *range(1, count)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, 40, (count, length), generator=generator) * mask, "attention_mask": mask}


def seeing(*args: Any, batches: int = 3, **kwargs: Any) -> Evidence:
    """Evidence of one sample batch, repeated in passes."""

    def passes(module: nn.Module) -> None:
        for _ in range(batches):
            module(*args, **kwargs)

    return Evidence(args, kwargs, passes=passes)


def answer(module: nn.Module, x: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Logits in eval mode."""
    module.eval()
    with torch.no_grad():
        outputs = module(x) if isinstance(x, Tensor) else module(**x).logits
    assert isinstance(outputs, Tensor)
    return outputs


def saved_and_loaded(
    folder: Path, module: nn.Module, spec: Model, interface: Interface, run: Callable[[nn.Module], Tensor]
) -> nn.Module:
    """The network of an artifact; save_model itself compares answers bit for bit, and so does this."""
    with writing(folder, kind="model", name="small") as draft:
        save_model(draft, module, spec, interface, side="student", probe=lambda each: [run(each)])
    again = load_model(Artifact.load(folder)).module
    assert torch.equal(run(again), run(module))
    assert sum(each.numel() for each in again.parameters()) == sum(each.numel() for each in module.parameters())
    return again


def onnx_equals(folder: Path, module: nn.Module, x: Tensor | Mapping[str, Tensor], atol: float = 1e-5) -> None:
    """The exported file answers as the network does."""
    program: nn.Module = ImageProgram(nn.Identity(), module) if isinstance(x, Tensor) else TextProgram(module)
    example = {"image": x} if isinstance(x, Tensor) else dict(x)
    names = {0: "batch"} if isinstance(x, Tensor) else {0: "batch", 1: "length"}
    folder.mkdir(exist_ok=True)
    path = written(Onnx(), program.eval(), example, folder, dict.fromkeys(example, names))
    found = Onnx().load(path)({name: each.numpy() for name, each in example.items()})["logits"]
    np.testing.assert_allclose(found, answer(module, x).numpy(), atol=atol)

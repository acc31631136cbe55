"""Small networks of every kind that structured pruning must work on, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import decoct as dc
from decoct.models.base import Interface

IMAGE = Interface(kind="image", shape=(3, 32, 32), outputs=10)
TEXT = Interface(kind="text", shape=(7,), outputs=2, vocabulary=50, padding=0)


class UNet(nn.Module):
    """Two levels, skips by concatenation, transposed convolutions up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = self.block(3, width), self.block(width, 2 * width)
        self.bottom = self.block(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join2, self.join1 = self.block(4 * width, 2 * width), self.block(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)
        self.pool = nn.MaxPool2d(2)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.up2(self.bottom(self.pool(b)))
        d = self.up1(self.join2(torch.cat([b, c], 1)))
        return self.head(self.join1(torch.cat([a, d], 1)))


class Recurrent(nn.Module):
    """Embedding, LSTM or GRU, and a classifier on the last states."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.rnn = kind(16, 32, layers, batch_first=True, bidirectional=bidirectional)
        self.both = bidirectional
        self.head = nn.Linear(64 if bidirectional else 32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        _, state = self.rnn(self.embedding(ids))
        last = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([last[-2], last[-1]], 1) if self.both else last[-1])


class Levels(nn.Module):
    """A detector's backbone; its maps as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        factory = torchvision.models.detection.backbone_utils.resnet_fpn_backbone
        self.body = factory(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)["1"]


def bert(attention: str) -> nn.Module:
    config = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return dc.Transformers(config={**config, "intermediate_size": 128}, attention=attention).build(TEXT)


def image(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size)


def ids() -> dict[str, Tensor]:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(1, 50, (2, 7)), "attention_mask": mask}


Made = tuple[nn.Module, Any]
ZOO: dict[str, Callable[[], Made]] = {
    "small_resnet": lambda: (dc.SmallResNet(width=16).build(IMAGE), image()),
    "small_mobilenet": lambda: (dc.SmallMobileNet().build(IMAGE), image()),
    "bilstm": lambda: (dc.BiLSTM(embedding=32, hidden=32, layers=2).build(TEXT), ids()),
    "bert_sdpa": lambda: (bert("sdpa"), ids()),
    "bert_eager": lambda: (bert("eager"), ids()),
    "resnet18": lambda: (torchvision.models.resnet18(num_classes=10), image()),
    "mobilenet_v3_small": lambda: (torchvision.models.mobilenet_v3_small(num_classes=10), image()),
    "shufflenet": lambda: (torchvision.models.shufflenet_v2_x0_5(num_classes=10), image()),
    "vit": lambda: (torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10), image()),
    "timm_vit": lambda: (timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10), image()),
    "unet": lambda: (UNet(), image()),
    "lstm": lambda: (Recurrent(nn.LSTM, layers=2), torch.randint(0, 50, (2, 5))),
    "gru": lambda: (Recurrent(nn.GRU, bidirectional=True), torch.randint(0, 50, (2, 5))),
    "fpn": lambda: (Levels(), image(64)),
}


def make(name: str, seed: int = 0) -> Made:
    """The network in eval mode, its normalization as after some training, and its inputs."""
    torch.manual_seed(seed)
    module, example = ZOO[name]()
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
            nn.init.uniform_(each.weight, 0.5, 2)
            nn.init.normal_(each.bias)
        elif isinstance(each, nn.Linear) and not each.weight.any():
            nn.init.normal_(each.weight)
    return module.eval(), example


def run(module: nn.Module, example: Any) -> Tensor:
    with torch.no_grad():
        out = module(**example) if isinstance(example, dict) else module(example)
    return out if isinstance(out, Tensor) else out.logits

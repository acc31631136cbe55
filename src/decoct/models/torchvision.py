"""Torchvision: the image classifiers of the torchvision library, and its networks for maps of classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from decoct.artifact import sha256
from decoct.errors import DataError, IntegrityError, RecipeError, did_you_mean
from decoct.models.base import Interface, Model
from decoct.models.checks import FAILURES, reachable, require, require_kind, try_forward
from decoct.models.weights import read_weights

TWO_HEADS = ("classifier.low_classifier.", "classifier.high_classifier.")
"""LR-ASPP adds up the maps of two last layers."""


class Torchvision(Model):
    """An image classifier of torchvision, with the task's outputs and channels; for maps a segmentation network.

    `name` as in `torchvision.models.list_models(torchvision.models)`, for an answer at each pixel as in
    `list_models(torchvision.models.segmentation)` (its auxiliary head left out); `weights`: a name of its published
    weights, as DEFAULT (the head is drawn afresh where the number of outputs differs, the first convolution is summed
    or repeated over channels). `small`: a 3x3 first convolution of stride 1 and no max-pooling, for images of 28 to 64
    pixels (ResNets only; that convolution is then drawn afresh).
    """

    use: ClassVar[str] = "torchvision"
    positional: ClassVar[tuple[str, ...]] = ("name",)
    name: str
    weights: str | None = None
    small: bool = False

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image", per_pixel=None)
        models = require("torchvision.models", "vision")
        known = models.list_models(module=models.segmentation if interface.per_pixel else models)
        if self.name not in known:
            wanted = "network for maps" if interface.per_pixel else "classifier"
            raise RecipeError(f"torchvision has no {wanted} {self.name!r}; {did_you_mean(self.name, known)}")
        weights = self._weights(models) if self.weights is not None else None
        try:
            module = models.get_model(self.name, weights=None, num_classes=interface.width, **self._extra(interface))
        except FAILURES as error:
            raise RecipeError(f"torchvision/{self.name} for {interface.shape}: {error}") from error
        adapt_stem(module, interface.shape[0])
        if self.small:
            _shrink_stem(module, models.ResNet, self.name)
        if weights is not None and pretrained:
            state = published(weights)
            if self.name.startswith("vit_"):
                resize = models.vision_transformer.interpolate_embeddings
                state = dict(resize(interface.shape[-1], module.get_submodule("conv_proj").kernel_size[0], state))
            transplant(module, state, self.name)
        return try_forward(module, interface, f"torchvision/{self.name}")

    def _weights(self, models: Any) -> Any:
        options = models.get_model_weights(self.name).__members__
        if self.weights not in options:
            hint = did_you_mean(str(self.weights), options)
            raise RecipeError(f"weights {self.weights!r} of torchvision/{self.name}: unknown; {hint}")
        return options[self.weights]

    def _extra(self, interface: Interface) -> dict[str, Any]:
        """What some constructors take beside the number of classes."""
        if interface.per_pixel:
            return {"weights_backbone": None}
        _, height, width = interface.shape
        if self.name in ("googlenet", "inception_v3"):
            return {"aux_logits": False, "init_weights": True, "transform_input": self.weights is not None}
        if self.name.startswith("vit_"):
            if height != width:
                raise RecipeError(f"torchvision/{self.name} takes square images, the task gives {height}x{width}")
            return {"image_size": height}
        return {"input_size": (height, width)} if self.name.startswith("maxvit") else {}


def first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d]:
    """Path of the convolution that sees the image, and itself."""
    for name, each in module.named_modules():
        if isinstance(each, nn.Conv2d):
            return name, each
    raise AssertionError(f"{type(module).__name__} has no convolution")


def adapt_stem(module: nn.Module, channels: int) -> None:
    """Replaces the first convolution by one that takes `channels`, drawn afresh."""
    name, old = first_convolution(module)
    if old.in_channels != channels:
        _replace_convolution(module, name, old, channels, (old.kernel_size, old.stride, old.padding))


def over_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weight `[O, C, k, k]` for another number of input channels.

    One channel: the sum (a grey image gives what it gave as RGB); more: repeated, scaled by C / channels.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // old)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (old / channels)


def transplant(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Fills `module` with published weights; the head and a stem of another kernel stay as drawn.

    RecipeError where anything else would stay unfilled.
    """
    own = module.state_dict()
    stem = first_convolution(module)[0] + ".weight"
    last = [key for key in own if key.startswith(TWO_HEADS)] or list(own)[-2:]
    head = [key for key in last if own[key].shape != state.get(key, own[key]).shape]
    if stem in state and own[stem].shape[1] != state[stem].shape[1]:
        state = {**state, stem: over_channels(state[stem], own[stem].shape[1])}
    fresh = {*head, stem} if own[stem].shape != state[stem].shape else set(head)
    wrong = [key for key in own if key not in fresh and (key not in state or state[key].shape != own[key].shape)]
    if wrong:
        raise RecipeError(f"the weights of torchvision/{name} do not fit at {wrong[0]}; set weights: null")
    module.load_state_dict({key: own[key] if key in fresh else state[key] for key in own})


def published(weights: Any) -> dict[str, Tensor]:
    """Published weights, from the cache or the network; read as plain weights by another process."""
    file = Path(urlparse(weights.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    match = re.search(r"-([a-f0-9]{8,})\.", file)
    prefix = match[1] if match else ""
    if not path.is_file():
        _download(weights.url, path, prefix)
    if not sha256(path).startswith(prefix):
        raise IntegrityError(f"{path} is damaged: its SHA-256 does not begin with {prefix}; delete it and try again")
    return read_weights(path)


def _download(url: str, path: Path, prefix: str) -> None:
    reason = "no network"
    if reachable(str(urlparse(url).hostname)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix or None, progress=False)
            return
        except (URLError, OSError, RuntimeError) as error:
            reason = str(error)
    raise DataError(
        f"the weights {path.name} are not here and could not be downloaded ({reason}); put the file of {url} into "
        f"{path.parent}, or set weights: null"
    )


def _shrink_stem(module: nn.Module, resnet: type[nn.Module], name: str) -> None:
    if not isinstance(module, resnet):
        raise RecipeError(f"small: true is for ResNets, not torchvision/{name}; leave it out")
    conv = module.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    _replace_convolution(module, "conv1", conv, conv.in_channels, ((3, 3), (1, 1), (1, 1)))
    module.set_submodule("maxpool", nn.Identity())


def _replace_convolution(module: nn.Module, name: str, old: nn.Conv2d, channels: int, geometry: Any) -> None:
    kernel, stride, padding = geometry
    new = nn.Conv2d(channels, old.out_channels, kernel, stride, padding, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    module.set_submodule(name, new)

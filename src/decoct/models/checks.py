"""What every builder checks: the kind of input, packages that are installed, one forward pass."""

from __future__ import annotations

import importlib
import os
import socket
from types import ModuleType

import torch
from torch import Tensor, nn

from decoct.errors import RecipeError, ResourceError
from decoct.models.base import Interface
from decoct.models.calls import logits_of
from decoct.network import is_offline

FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)
"""What libraries raise when a network cannot take an input."""


def require_kind(
    interface: Interface, name: str, *kinds: str, per_pixel: bool | None = False, boxes: bool = False
) -> None:
    """RecipeError where the task's inputs are of another kind than the network takes, or where it wants an answer for
    each pixel and the network gives one for each image, or the other way round (`per_pixel` None: it gives either), or
    boxes of a network that gives none, or the other way round."""
    if interface.kind not in kinds:
        raise RecipeError(
            f"{name} takes {' or '.join(kinds)} inputs, the task gives {interface.kind}; choose another model "
            f"(image: small_resnet, torchvision, timm; text: transformers, bilstm; tabular: mlp)"
        )
    if interface.boxes != boxes:
        which = "gives boxes, the task wants none" if boxes else "gives no boxes, the task wants some"
        raise RecipeError(f"{name} {which}; choose another model (boxes: small_detector, faster_rcnn)")
    if per_pixel is not None and interface.per_pixel != per_pixel:
        gives, wants = ("pixel", "image") if per_pixel else ("image", "pixel")
        raise RecipeError(
            f"{name} answers for each {gives}, the task wants an answer for each {wants}; choose another model (each "
            "pixel: small_unet, torchvision/lraspp_mobilenet_v3_large; each image: small_resnet, torchvision, timm)"
        )


def require(package: str, extra: str) -> ModuleType:
    """The package, imported now; ResourceError says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ResourceError(f"{package} cannot be imported ({error}); pip install 'decoct[{extra}]'") from None


def reachable(host: str) -> bool:
    """Whether a download from `host` can be tried: not offline, nor by HF_HUB_OFFLINE, and its name resolves."""
    if is_offline() or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def example(interface: Interface, batch: int = 1) -> dict[str, Tensor]:
    """Inputs of `batch` samples in the interface's shape: zeros, for text one id that is no padding."""
    if interface.kind == "text":
        ids = torch.full((batch, *interface.shape), 1 if interface.padding == 0 else 0)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"input": torch.zeros(batch, *interface.shape)}


def call(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The logits that a module returns for `example`-like inputs."""
    return logits_of(module(inputs["input"]) if "input" in inputs else module(**inputs))


def try_forward(module: nn.Module, interface: Interface, name: str) -> nn.Module:
    """The module itself in train mode, after one forward pass in eval mode; RecipeError where that fails."""
    shape = "x".join(map(str, interface.shape))
    module.eval()
    try:
        with torch.no_grad():
            logits = call(module, example(interface))
    except FAILURES as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RecipeError(
            f"{name} cannot take inputs of {shape}: {reason}; choose another model or size of input"
        ) from error
    expected = (1, *(interface.shape if interface.positions and not interface.per_pixel else ()), interface.width)
    if interface.per_pixel:
        expected = (1, interface.width, *logits.shape[2:])
    if tuple(logits.shape) != expected or (interface.per_pixel and logits.ndim != 4):
        raise RecipeError(f"{name} returns {tuple(logits.shape)} for one input of {shape}, {expected} is needed")
    return module.train()

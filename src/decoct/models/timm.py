"""Timm: image networks of the timm library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.models.base import Interface, Model
from decoct.models.checks import FAILURES, reachable, require, require_kind, try_forward

HUB = "huggingface.co"


class Timm(Model):
    """An image network of timm, with the task's outputs, channels and, where it takes one, image size.

    `name` as in `timm.list_models()`; `pretrained`: start from its published weights (safetensors only).
    """

    use: ClassVar[str] = "timm"
    positional: ClassVar[tuple[str, ...]] = ("name",)
    name: str
    pretrained: bool = False

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image")
        timm = require("timm", "vision")
        if not timm.is_model(self.name):
            plain = self.name.partition(".")[0]
            raise RecipeError(f"timm has no model {self.name!r}; {_suggest(plain, timm.list_models())}")
        settings = timm.models.get_pretrained_cfg(self.name)
        channels, *size = interface.shape
        options: dict[str, Any] = {"num_classes": interface.width, "in_chans": channels}
        if settings is not None and settings.fixed_input_size:
            options["img_size"] = tuple(size)
        if self.pretrained and pretrained:
            options.update(pretrained=True, pretrained_cfg_overlay={"file": str(_weights(self.name, settings))})
        try:
            module = timm.create_model(self.name, **options)
        except FAILURES as error:
            raise RecipeError(f"timm/{self.name} with {options}: {error}") from error
        return try_forward(module, interface, f"timm/{self.name}")


def _suggest(name: str, known: list[str]) -> str:
    sentence = did_you_mean(name, known)
    return sentence if len(sentence) < 300 else "`timm.list_models()` gives all names"


def _weights(name: str, settings: Any) -> Path:
    """The published safetensors file, from the cache or the hub; DataError says how to get it."""
    hub = require("huggingface_hub", "vision")
    if settings is None or not settings.hf_hub_id:
        raise DataError(f"timm/{name} has no published safetensors; set pretrained: false")
    repository, revision = settings.hf_hub_id, None
    if "@" in repository:
        repository, revision = re.split("@", repository, maxsplit=1)
    cached = hub.try_to_load_from_cache(repository, "model.safetensors", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if reachable(HUB):
        try:
            return Path(hub.hf_hub_download(repository, "model.safetensors", revision=revision))
        except (OSError, hub.errors.HfHubHTTPError, hub.errors.EntryNotFoundError) as error:
            reason = str(error).partition("\n")[0]
    else:
        reason = f"{HUB} cannot be reached"
    raise DataError(
        f"the weights of timm/{name} are not here and could not be downloaded ({reason}); run "
        f"`hf download {repository} model.safetensors` where there is a network and copy the cache folder "
        f"(HF_HOME), or use {{use: file, path: FILE, model: timm/{name}}}, or set pretrained: false"
    )

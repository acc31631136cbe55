"""Timm: image networks of the timm library."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import nn

from decoct.artifact import Strict, read_json, sha256
from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.models.base import Interface, OutsideModel
from decoct.models.brought import Brought
from decoct.models.checks import FAILURES, reachable, require, require_kind, try_forward
from decoct.models.hub import HUB, snapshot, without_safetensors

WEIGHTS = "model.safetensors"


class Timm(OutsideModel):
    """An image network of timm, with the task's outputs, channels and, where it takes one, image size.

    `name` as in `timm.list_models()`; `pretrained`: start from its published weights (safetensors only), of a
    `revision` of the hub. Or `path`: a local folder as timm saves one (config.json with architecture and
    pretrained_cfg, model.safetensors). `labels`: the classes of its outputs in their order, where config.json names
    none (label_names) or others.
    """

    use: ClassVar[str] = "timm"
    positional: ClassVar[tuple[str, ...]] = ("name",)
    name: str | None = None
    pretrained: bool = False
    path: Path | None = Field(default=None, exclude_if=lambda value: value is None)
    revision: str | None = Field(default=None, exclude_if=lambda value: value is None)
    labels: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)

    @model_validator(mode="after")
    def _name_or_path(self) -> Timm:
        if (self.name is None) == (self.path is None):
            raise ValueError("give one of name (of a network of timm) and path (a local folder that timm saved)")
        if self.revision is not None and not self.pretrained:
            raise ValueError("revision is of published weights; say pretrained: true, or leave it out")
        return self

    @property
    def reads_files(self) -> bool:
        return self.path is not None or self.revision is not None

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "image")
        timm = require("timm", "vision")
        config = self._config()
        name = str(self.name) if config is None else str(config["architecture"])
        if not timm.is_model(name):
            plain = name.partition(".")[0]
            raise RecipeError(f"timm has no model {name!r}; {_suggest(plain, timm.list_models())}")
        settings = timm.models.get_pretrained_cfg(name)
        channels, *size = interface.shape
        options: dict[str, Any] = {"num_classes": interface.width, "in_chans": channels}
        if settings is not None and settings.fixed_input_size:
            options["img_size"] = tuple(size)
        if pretrained and config is not None:
            overlay = {"file": str(self._folder() / WEIGHTS), "num_classes": _classes(config), "custom_load": False}
            options.update(pretrained=True, pretrained_cfg_overlay=overlay)
        elif pretrained and self.pretrained:
            options.update(pretrained=True, pretrained_cfg_overlay={"file": str(_weights(name, settings))})
        try:
            module = timm.create_model(name, **options)
        except FAILURES as error:
            raise RecipeError(f"timm/{name} with {options}: {error}") from error
        return try_forward(module, interface, f"timm/{name}")

    def brings(self) -> Brought | None:
        config = self._config()
        if config is None and not self.pretrained:
            return None
        if config is None:
            settings = require("timm", "vision").models.get_pretrained_cfg(str(self.name))
            config = {} if settings is None else {"pretrained_cfg": settings.to_dict(), "num_classes": None}
        given: dict[str, Any] = config.get("pretrained_cfg") or {}
        count = _classes(config)
        named = config.get("label_names") or given.get("label_names") or [f"LABEL_{each}" for each in range(count)]
        labels = self.labels or tuple(map(str, named))
        source = f"timm/{self.name}" if self.path is None else str(self.path)
        if len(labels) != count:
            raise RecipeError(f"labels: {len(labels)} names, and {source} has {count} outputs")
        mean, std = given.get("mean"), given.get("std")
        size = given.get("input_size")
        return Brought(
            source,
            labels,
            mean=tuple(map(float, mean)) if mean else None,
            std=tuple(map(float, std)) if std else None,
            size=int(size[-1]) if size else None,
            resample=given.get("interpolation"),
        )

    def standalone(self, interface: Interface) -> Timm:
        if self.path is None:
            return self.replace(revision=None, labels=())
        return Timm(name=str((self._config() or {})["architecture"]))

    def fingerprint(self) -> str:
        if not self.reads_files:
            return self.digest()
        files = [self._folder() / name for name in ("config.json", WEIGHTS)]
        return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()

    def _folder(self) -> Path:
        """The folder of a path or a revision, with settings and weights in it."""
        folder = self.path
        if folder is None:
            name = str(self.name)
            folder = snapshot(name if "/" in name else f"timm/{name}", self.revision, extra="vision")[0]
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: there is no config.json; save a network there with timm.models.save_for_hf")
        if not (folder / WEIGHTS).is_file():
            raise DataError(without_safetensors(str(folder), sorted(each.name for each in folder.iterdir())))
        return folder

    def _config(self) -> dict[str, Any] | None:
        """The settings in its folder; None where it has none."""
        if not self.reads_files:
            return None
        found: dict[str, Any] = read_json(self._folder() / "config.json", _Config, error=DataError)
        return found


class _Config(Strict):
    """What is read of a folder's config.json."""

    architecture: str
    num_classes: int | None = None
    label_names: list[str] | None = None
    pretrained_cfg: dict[str, Any] = {}


def _classes(config: dict[str, Any]) -> int:
    count = config.get("num_classes")
    return int((config.get("pretrained_cfg") or {}).get("num_classes") or 0 if count is None else count)


def _suggest(name: str, known: list[str]) -> str:
    sentence = did_you_mean(name, known)
    return sentence if len(sentence) < 300 else "`timm.list_models()` gives all names"


def _weights(name: str, settings: Any) -> Path:
    """The published safetensors file, from the cache or the hub; DataError says how to get it."""
    hub, errors = require("huggingface_hub", "vision"), require("huggingface_hub.errors", "vision")
    if settings is None or not settings.hf_hub_id:
        raise DataError(f"timm/{name} has no published safetensors; set pretrained: false")
    repository, revision = settings.hf_hub_id, None
    if "@" in repository:
        repository, revision = re.split("@", repository, maxsplit=1)
    cached = hub.try_to_load_from_cache(repository, WEIGHTS, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if reachable(HUB):
        try:
            return Path(hub.hf_hub_download(repository, WEIGHTS, revision=revision))
        except (OSError, errors.HfHubHTTPError, errors.EntryNotFoundError) as error:
            reason = str(error).partition("\n")[0]
    else:
        reason = f"{HUB} cannot be reached"
    raise DataError(
        f"the weights of timm/{name} are not here and could not be downloaded ({reason}); run "
        f"`hf download {repository} model.safetensors` where there is a network and copy the cache folder "
        f"(HF_HOME), or use {{use: file, path: FILE, model: timm/{name}}}, or set pretrained: false"
    )

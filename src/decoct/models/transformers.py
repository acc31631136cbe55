"""Transformers: networks with a head for sequences, tokens or images, from a folder, the hub or a config."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, JsonValue, model_validator
from torch import nn

from decoct.artifact import sha256
from decoct.errors import DataError, RecipeError, did_you_mean
from decoct.models.base import Interface, OutsideModel
from decoct.models.brought import Brought
from decoct.models.checks import require, require_kind, try_forward
from decoct.models.folders import ALSO_READ, image_settings, longest_text, tokenizer_folder
from decoct.models.hub import snapshot, without_safetensors
from decoct.models.weights import all_tensors

NOT_STRUCTURE = (
    "id2label",
    "label2id",
    "num_labels",
    "transformers_version",
    "architectures",
    "dtype",
    "_name_or_path",
)
"""Settings of a config that are the interface's or say nothing about the structure."""


MOST_LAYERS = 1024


class Transformers(OutsideModel):
    """A network of the transformers library with a head for classification or regression of sequences, tokens, images.

    `path`: a local folder in the transformers format (config.json, *.safetensors), or `name` of one on the hub at a
    `revision` (downloaded once, then from its cache). Its classes (id2label) are matched by name with the data's;
    `labels` names them anew, in the order of its outputs; the head is drawn afresh where it is to be trained on other
    classes. Or `config`: `{model_type: bert, hidden_size: 64, num_hidden_layers: 2, ...}`, drawn afresh, with
    vocabulary, padding and labels of the task. `attention`: eager shows attention maps, sdpa is faster.
    """

    use: ClassVar[str] = "transformers"
    path: Path | None = None
    name: str | None = Field(default=None, exclude_if=lambda value: value is None)
    revision: str | None = Field(default=None, exclude_if=lambda value: value is None)
    labels: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)
    config: Mapping[str, JsonValue] | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"

    @model_validator(mode="after")
    def _path_or_config(self) -> Transformers:
        if sum(each is not None for each in (self.path, self.name, self.config)) != 1:
            raise ValueError(
                "give one of path (a local folder), name (of a repository on the hub) and config ({model_type: bert, "
                "...})"
            )
        if self.revision is not None and self.name is None:
            raise ValueError("revision is of a `name` on the hub; leave it out")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels: a class is named twice; give each output a name of its own")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config.model_type is missing; name an architecture, as model_type: bert")
        for name, value in (self.config or {}).items():
            if "layers" in name and isinstance(value, int) and value > MOST_LAYERS:
                raise ValueError(f"config.{name} is {value}; at most {MOST_LAYERS} layers are built")
        return self

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        require_kind(interface, self.use, "text", "image")
        config = _completed(self._settings(), interface)
        if self.config is None and pretrained:
            module = _loaded(self.folder(), config, self.attention, interface, self._classifies(interface))
        else:
            factory = _factory(interface)
            with _errors_named(f"model_type {config.model_type}, attention {self.attention}"):
                module = factory.from_config(
                    config, attn_implementation=self.attention, dtype=torch.float32, trust_remote_code=False
                )
        return try_forward(module, interface, f"transformers {config.model_type}")

    def folder(self) -> Path:
        """Where its files lie: of a name on the hub, in the cache, downloaded where they are not there yet."""
        if self.name is not None:
            return snapshot(self.name, self.revision)[0]
        assert self.path is not None, "a config has no folder"
        return self.path

    def brings(self) -> Brought | None:
        if self.config is not None:
            return None
        folder = self.folder()
        config = _read_config(folder)
        heads = [each for each in config.architectures or () if each.endswith("Classification")]
        labels = tuple(str(config.id2label[number]) for number in sorted(config.id2label)) if heads else ()
        if self.labels and labels and len(self.labels) != len(labels):
            raise RecipeError(
                f"labels: {len(self.labels)} names, and {folder} has {len(labels)} outputs ({', '.join(labels[:8])})"
            )
        images = image_settings(folder)
        longest = None if images else longest_text(folder, config)
        at = None if images else tokenizer_folder(folder)
        source = self.name if self.name is not None else str(folder)
        return Brought(source, (self.labels or labels) if labels else (), at, longest, **images)

    def standalone(self, interface: Interface) -> Transformers:
        structure = dict.fromkeys(("path", "name", "revision"))
        return self.replace(**structure, labels=(), config=self._settings())

    def fingerprint(self) -> str:
        if self.config is not None:
            return self.digest()
        folder = self.folder()
        beside = [folder / name for name in ALSO_READ if (folder / name).is_file()]
        files = [_config_file(folder), *sorted(folder.glob("*.safetensors")), *beside]
        return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()

    def _classifies(self, interface: Interface) -> bool:
        """Whether the folder says that it has a trained head of as many outputs, for answers of this kind."""
        config = _read_config(self.folder())
        wanted = _HEADS["token" if interface.positions else "sequence" if interface.kind == "text" else "image"]
        named = any(each.endswith(wanted) for each in config.architectures or ())
        return named and int(config.num_labels) == interface.width

    def _settings(self) -> dict[str, Any]:
        """The config as plain data, without what is the interface's."""
        if self.config is not None:
            return dict(self.config)
        auto, found = require("transformers", "nlp").AutoConfig, _read_config(self.folder())
        known = auto.for_model(found.model_type)
        allowed = set(known.to_dict()) | set(known.attribute_map)
        settings: dict[str, Any] = found.to_diff_dict()
        return {key: value for key, value in settings.items() if key in allowed and key not in NOT_STRUCTURE}


_HEADS = {
    "token": "ForTokenClassification",
    "sequence": "ForSequenceClassification",
    "image": "ForImageClassification",
}
"""How the classes of transformers end that have a head for each kind of answer."""


def _read_config(folder: Path) -> Any:
    """The config object of a folder."""
    _config_file(folder)
    with _errors_named(str(folder)):
        return require("transformers", "nlp").AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )


def _completed(settings: Mapping[str, Any], interface: Interface) -> Any:
    """The config object with the interface's vocabulary, padding and outputs; RecipeError where they contradict."""
    auto = require("transformers", "nlp").AutoConfig
    kind = settings["model_type"]
    tables = require("transformers.models.auto.modeling_auto", "nlp")
    what = "image" if interface.kind == "image" else "token" if interface.positions else "sequence"
    kinds = getattr(tables, f"MODEL_FOR_{what.upper()}_CLASSIFICATION_MAPPING_NAMES")
    if kind not in kinds:
        raise RecipeError(
            f"config.model_type {kind!r} has no {what} classifier in transformers; {did_you_mean(kind, kinds)}"
        )
    known = auto.for_model(kind)
    allowed = (set(known.to_dict()) | set(known.attribute_map)) - set(NOT_STRUCTURE)
    for name in settings:
        if name not in allowed:
            raise RecipeError(f"config.{name}: unknown for model_type {kind}; {did_you_mean(name, allowed)}")
    full = dict(settings)
    if interface.vocabulary is not None and full.setdefault("vocab_size", interface.vocabulary) < interface.vocabulary:
        raise RecipeError(
            f"vocab_size {full['vocab_size']} is less than the tokenizer's {interface.vocabulary}; take the model's "
            f"own tokenizer for the task, or leave vocab_size out of config"
        )
    if interface.padding is not None and full.setdefault("pad_token_id", interface.padding) != interface.padding:
        raise RecipeError(
            f"pad_token_id {full['pad_token_id']} is not the tokenizer's {interface.padding}; take the model's own "
            f"tokenizer for the task, or leave pad_token_id out of config"
        )
    if interface.kind == "image" and full.setdefault("num_channels", interface.shape[0]) != interface.shape[0]:
        raise RecipeError(
            f"num_channels is {full['num_channels']}, the pictures have {interface.shape[0]} channels; say "
            f"data.channels: {full['num_channels']}, or choose another model"
        )
    with _errors_named(f"config of model_type {kind!r}"):
        return auto.for_model(**{**full, "num_labels": interface.width})


def _factory(interface: Interface) -> Any:
    """The class of transformers that has the head that is asked for."""
    library = require("transformers", "nlp")
    if interface.kind == "image":
        return library.AutoModelForImageClassification
    if interface.positions:
        return library.AutoModelForTokenClassification
    return library.AutoModelForSequenceClassification


def _loaded(path: Path, config: Any, attention: str, interface: Interface, with_head: bool) -> nn.Module:
    """The network of a local folder; every weight but the head's must come from its files, `with_head` these too."""
    transformers = require("transformers", "nlp")
    if not list(path.glob("*.safetensors")):
        files = [each.name for each in path.iterdir()]
        raise DataError(without_safetensors(str(path), sorted(files, key=lambda name: (len(name), name))))
    with _quiet(transformers), _errors_named(str(path)):
        module, info = _factory(interface).from_pretrained(
            str(path),
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    body = f"{module.base_model_prefix}."
    pooler = f"{body}pooler."
    lost = {name for name in info["missing_keys"] if name.startswith(body) and not name.startswith(pooler)}
    differ = {str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]}
    lost |= {name for name in differ if name.startswith(body)}
    if with_head:
        lost |= {name for name in {*info["missing_keys"], *differ} if not name.startswith(pooler)}
    if lost:
        raise RecipeError(
            f"{path}: {len(lost)} weights of the {config.model_type} are absent or of another shape, first "
            f"{min(lost)}; check that config.json and the safetensors files belong together"
        )
    found: nn.Module = module
    for tensor in all_tensors(found).values():
        tensor.data = tensor.data.clone()  # out of the mapped file, which may go or change
    return found


def _config_file(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise DataError(
            f"{path}: no folder with a config.json; save a model there with save_pretrained, or copy one from the hub"
        )
    return path / "config.json"


@contextlib.contextmanager
def _errors_named(subject: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
        if isinstance(error, RecipeError | DataError):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(f"{subject}: refused by transformers: {reason[:400]}") from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bar and no load report from transformers while the body runs."""
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()

"""Model, the Spec from which a network is built; Network, one that stands."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from decoct.artifact import MANIFEST, read_json
from decoct.errors import DataError, did_you_mean
from decoct.models.interface import Interface
from decoct.spec import Spec, digest_of

if TYPE_CHECKING:
    from torch import nn

    from decoct.artifact import Artifact
    from decoct.models.brought import Brought
    from decoct.outputs import Needs, Outputs

__all__ = ["Interface", "KeptModel", "Model", "Network", "OutsideModel", "identity", "shorthand"]


class Model(Spec):
    """Describes a network; `build` makes a fresh one."""

    reads_rows: ClassVar[bool] = False
    """Whether it reads the rows of a table as the data have them, without the task's preprocessing."""

    becomes_onnx: ClassVar[bool] = False
    """Whether every such network is known to become an ONNX file, so that `check` need not try."""

    @abstractmethod
    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        """A new module in train mode, parameters drawn from torch's current random state.

        `pretrained=False` asks for the structure alone: no download, no file but the config is read (used to rebuild
        an artifact, whose weights follow). Image nets take `[B, C, H, W]` and return logits `[B, outputs]` (or an
        object with `.logits`); text nets take `input_ids=` and `attention_mask=` `[B, L]`; tabular nets `[B, F]`. Where
        the interface asks for an answer at each position, logits are `[B, L, outputs]` (images: `[B, outputs, H, W]`).
        """

    def brings(self) -> Brought | None:
        """What its files say of itself, for a network that was trained elsewhere; None for one that was not."""
        return None

    def head_of(self, module: nn.Module) -> str | None:
        """The path of the linear layer at the end, where logits may be left to be made of hidden states; None: nowhere.

        Of networks whose logits, one row for each position, take more memory than the rest.
        """
        return None

    def run(self, module: nn.Module, inputs: Any, interface: Interface, needs: Needs, target: Any = None) -> Outputs:
        """What a network of this kind says about prepared inputs: its raw result, read.

        Features of `needs` are captured. `target` is given where `needs.losses` asks for what the module computes
        itself (a detector). A model whose result is no plain logits says here what it means.
        """
        from decoct.models.calls import call, run_plainly
        from decoct.models.heads import run_factored

        head = self.head_of(module) if "factored" in needs.forms else None
        if head is None or "*" in needs.features:  # every layer: the head's logits too
            return run_plainly(module, inputs, interface, needs)
        ask = lambda: call(module, interface.kind, inputs)  # noqa: E731
        return run_factored(module, ask, head, features=sorted(needs.features))


@dataclass(frozen=True)
class Network:
    """A module with the Spec that reads its results, and the interface it was built for."""

    module: nn.Module
    spec: Model
    interface: Interface

    def run(self, inputs: Any, needs: Needs, target: Any = None) -> Outputs:
        """What it says about prepared inputs, in eval mode as in training."""
        from decoct.models.modes import as_in_training

        with as_in_training():
            return self.spec.run(self.module, inputs, self.interface, needs, target)


class KeptModel(Model):
    """A Model that stands for an artifact which was made before."""

    @abstractmethod
    def open(self) -> Artifact:
        """The artifact, checked."""


class OutsideModel(Model):
    """A Model that reads files which may be gone when its artifact is loaded.

    `reads_files`: whether it does; what reads none is what its Spec says.
    """

    @property
    def reads_files(self) -> bool:
        return True

    @abstractmethod
    def standalone(self, interface: Interface) -> Model:
        """The Spec of the same structure that needs no file; it is what an artifact keeps."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over the contents of the files it reads, so that a changed file is a changed model."""


def identity(model: Model) -> str:
    """SHA-256 of what a model is: its Spec without what is `not_in_key`, and of files their content, not their path."""
    if not isinstance(model, OutsideModel) or not model.reads_files:
        return digest_of(model.keyed())
    fields = {name: getattr(model, name) for name in type(model).model_fields if name != "path"}
    inner = {name: identity(each) for name, each in fields.items() if isinstance(each, Model)}
    parts = {name: each for name, each in model.keyed().items() if name != "path"} | inner
    return hashlib.sha256(json.dumps([parts, model.fingerprint()], sort_keys=True).encode()).hexdigest()


SETTINGS, RESULTS = "config.json", "results.json"


def of_path(place: Path) -> dict[str, Any]:
    """Plain data for the model in a folder or file: an artifact or store, a folder of transformers or timm, a file
    that answers. ValueError says what would be understood."""
    path = str(place)
    if place.is_dir() and (place / RESULTS).is_file() and not (place / MANIFEST).is_file():
        return {"use": "artifact", "path": path}
    if place.is_dir() and (place / MANIFEST).is_file():
        kind = read_json(place / MANIFEST, dict[str, Any]).get("kind")
        return {"use": "stored" if kind == "store" else "artifact", "path": path}
    if place.is_dir() and (place / SETTINGS).is_file():
        settings = read_json(place / SETTINGS, dict[str, Any], error=DataError)
        return {"use": "timm" if "architecture" in settings else "transformers", "path": path}
    if place.suffix == ".onnx" and place.is_file():
        return {"use": "onnx", "path": path}
    if place.suffix in FITTED and place.is_file():
        return {"use": "estimator", "path": path}
    if place.suffix in WEIGHT_FILES:
        raise ValueError(
            f"{path!r} holds weights and does not say which network they fit; "
            f"write {{use: file, path: {path}, model: {{use: NAME, ...}}}}"
        )
    raise ValueError(
        f"{path!r} is no model that is understood: a folder with config.json and *.safetensors (transformers, timm), "
        "a run or a step's folder, an ONNX file, a file of XGBoost (.json, .ubj), LightGBM (.txt) or skops (.skops)"
    )


FITTED = (".json", ".ubj", ".txt", ".lgb", ".skops")
"""Endings of files that hold a fitted model of a table."""
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Endings of files that hold weights alone."""


def shorthand(value: Any) -> Any:
    """Plain data for a model from a name: `"timm/resnet34"`, `"torchvision/resnet18"`, `"mlp"`.

    `"transformers/FOLDER"` is a local folder; so is any path that begins with `.`, `~` or `/` (see `of_path`). A file
    of weights is refused: it does not say what it fits.

    >>> shorthand("timm/resnet34")
    {'use': 'timm', 'name': 'resnet34'}
    >>> shorthand("small_resnet")
    {'use': 'small_resnet'}
    """
    from decoct.models import CATALOGUE

    if not isinstance(value, str):
        return value
    if value.startswith((".", "/", "~")):
        place = Path(value).expanduser()
        if not place.exists():
            raise ValueError(f"{value!r}: nothing is there; give a folder with a model, a file, or a run")
        return of_path(place)
    if value.endswith(WEIGHT_FILES):
        raise ValueError(
            f"{value!r} holds weights and does not say which network they fit; "
            f"write {{use: file, path: {value}, model: {{use: NAME, ...}}}}"
        )
    use, _, name = value.partition("/")
    if use == "transformers" and name:
        return {"use": use, "path": name}
    if name and use in ("timm", "torchvision"):
        return {"use": use, "name": name}
    if use not in CATALOGUE and ":" not in use:
        hint = f"for a network of torchvision or timm write torchvision/{value} or timm/{value}"
        raise ValueError(f"{value!r} is no model; {did_you_mean(use, CATALOGUE)}; {hint}")
    return {"use": value} if not name else {"use": use, "name": name}

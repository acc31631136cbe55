"""GivenModel: a module or factory that came from Python."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from decoct.errors import RecipeError, did_you_mean
from decoct.models.base import Interface, Model, Network
from decoct.models.interface import InputKind, Port
from decoct.models.kinds import copyable
from decoct.models.weighed import weighed


class GivenModel(Model):
    """A network that was passed from Python and cannot be written down.

    `name` in the table of given objects; `type` its class; `fingerprint` SHA-256 over class, names, shapes, weights.
    """

    use: ClassVar[str] = "given"
    name: str
    type: str = ""
    fingerprint: str = ""

    def build(self, interface: Interface, *, pretrained: bool = True) -> nn.Module:
        raise RecipeError(what_to_pass(self, ()))


def given_model(name: str, module: nn.Module) -> GivenModel:
    """The Spec that stands for `module` in a recipe.

    >>> torch.manual_seed(0) and given_model("small", nn.Linear(2, 1)).type
    'torch.nn.modules.linear.Linear'
    """
    return GivenModel(name=name, type=type_name(module), fingerprint=fingerprint(module))


def instance(spec: GivenModel, given: Mapping[str, Any]) -> nn.Module:
    """A module of its own for `spec`: a deep copy of `given[name]`, or what that zero-argument factory returns.

    RecipeError says which object to pass where it is absent or of another class.
    """
    if spec.name not in given:
        raise RecipeError(what_to_pass(spec, given))
    found = given[spec.name]
    if isinstance(found, nn.Module):
        module = copy.deepcopy(copyable(found))
    elif callable(found):
        module = found()
    else:
        raise RecipeError(f"given[{spec.name!r}] is a {type(found).__name__}; pass a module or a factory of one")
    if not isinstance(module, nn.Module):
        raise RecipeError(f"given[{spec.name!r}] returned a {type(module).__name__}; a factory returns a module")
    if spec.type and type_name(module) != spec.type:
        raise RecipeError(
            f"given[{spec.name!r}] is a {type_name(module)}, the model was a {spec.type}; pass one of that class"
        )
    return module


def plain_network(module: nn.Module, kind: InputKind, *, per_pixel: bool = False) -> Network:
    """A module of which nothing is known but what it takes; its result is logits, `per_pixel` maps of them."""
    maps = {"logits": Port(kind="logits", shape=(None, None, None), axes={0: "batch"})}
    return Network(module, GivenModel(name="given"), Interface(kind=kind, outputs=maps if per_pixel else {}))


def fresh(spec: Model, interface: Interface, given: Mapping[str, Any], *, pretrained: bool = True) -> nn.Module:
    """The network of any Model Spec: built, or for a GivenModel taken from `given`.

    ResourceError, before it is done, where its weights would not fit into memory.
    """
    if isinstance(spec, GivenModel):
        return instance(spec, given)
    return weighed(spec.use, lambda wanted: spec.build(interface, pretrained=wanted), pretrained=pretrained)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over what a module is made of: the class, settings and source of each of its modules by name, and the
    name, shape, type and bytes of each parameter and buffer.

    Settings are the plain numbers, texts and tuples among the attributes of a class that is no library's; one whose
    name begins with an underscore is taken for bookkeeping, as a counter of calls, and left out.
    """
    total = hashlib.sha256(type_name(module).encode())
    for name, part in module.named_modules():
        own = f"{part.extra_repr()} {_settings(part)} {_source(type(part))}"
        total.update(f"{name} {type_name(part)} {own}".encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return total.hexdigest()


def _settings(part: nn.Module) -> str:
    """The plain attributes of a module of a class that is no library's."""
    if _of_library(type(part)):
        return ""
    plain = {
        name: value
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training" and _plain(value)
    }
    return repr(sorted(plain.items()))


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, int | float | str | torch.dtype)


def _of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "torchvision", "timm", "transformers")


def _source(kind: type) -> str:
    """The source of a class that is no library's; empty where it cannot be read (typed into a shell)."""
    if _of_library(kind):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def type_name(module: nn.Module | Callable[..., Any]) -> str:
    """Where a module's class is defined, and its name; in a worker process the script that was started is the same."""
    place = type(module).__module__
    return f"{'__main__' if place == '__mp_main__' else place}.{type(module).__qualname__}"


def what_to_pass(spec: GivenModel, given: Mapping[str, Any] | tuple[()]) -> str:
    """The sentence that says which object is missing."""
    hint = f" ({did_you_mean(spec.name, given)})" if given else ""
    return (
        f"the model {spec.name!r} came from Python and is not in the recipe{hint}; pass the module, or a function of "
        f"no arguments that makes it, as given={{{spec.name!r}: ...}} (its class is {spec.type or 'not recorded'})"
    )

"""Networks in artifacts: model.safetensors and model.json, checked by rebuilding at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from decoct.artifact import Artifact, Described, Draft, Strict, described_by, understood, write_tensors
from decoct.capture import capture
from decoct.errors import CannotRebuild, IntegrityError, RecipeError
from decoct.models.base import Interface, Model, Network, OutsideModel
from decoct.models.given import fresh
from decoct.models.modes import evaluating
from decoct.models.rewrites import parse, rewritten
from decoct.models.structure import describe, rebuild
from decoct.models.weights import all_tensors, fill, read_safetensors

WEIGHTS = "model.safetensors"
STRUCTURE = "model.json"


class Structure(Strict):
    """Shape of model.json."""

    base: Described
    interface: dict[str, Any]
    side: str
    stages: list[Described]
    aliases: dict[str, str]


Probe = Callable[[nn.Module], Sequence[Tensor]]
"""All that a network says of some batch."""


def save_model(
    draft: Draft,
    module: nn.Module,
    spec: Model,
    interface: Interface,
    *,
    side: str,
    probe: Probe | None = None,
    given: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network so that it can be built again, and builds it again at once to be sure.

    model.safetensors holds every parameter and buffer once; model.json the Spec, the interface, the side, the stages
    that turn a fresh build into this structure, and which tensors share storage by name. `probe` runs a network on
    some batch; original and rebuilt must agree bit for bit in eval mode, their weights in memory of one layout.
    torch's random state and the module's modes are left as they were. CannotRebuild names the module that differs.
    """
    given = given or {}
    base = spec.standalone(interface) if isinstance(spec, OutsideModel) else spec
    with torch.random.fork_rng(devices=[]):
        change = rewritten(module)
        before = module if change is None else change.origin
        deltas = describe(before, _structure(base, interface, given))
        stages = [{"use": "deltas", "deltas": deltas}] if deltas else []
        stages += [change.rewrite.plain()] if change is not None else []
        tensors, aliases = _stored(module)
        record = {
            "base": base.plain(),
            "interface": interface.plain(),
            "side": side,
            "stages": stages,
            "aliases": aliases,
        }
        draft.write_json(STRUCTURE, record)
        write_tensors(draft.folder / WEIGHTS, tensors)
        again = _build(record, read_safetensors(draft.folder / WEIGHTS), given, str(draft.folder))
        _compare(module, again, probe)


def load_model(artifact: Artifact, *, given: Mapping[str, Any] | None = None) -> Network:
    """The network of an artifact of kind "model", on the CPU, in eval mode; its `module` is what was trained.

    A class of the user's comes from `given[name]`: an instance (copied) or a zero-argument factory; RecipeError says
    what to pass. Weights are loaded strictly. torch's random state is left as it was.
    """
    if artifact.kind != "model":
        raise RecipeError(f"{artifact.folder} holds a {artifact.kind} artifact, no model")
    record = artifact.json(STRUCTURE, Structure)
    with torch.random.fork_rng(devices=[]):
        weights = read_safetensors(artifact.file(WEIGHTS))
        module = _build(record, weights, given or {}, str(artifact.folder)).eval()
    return Network(module, _spec(record["base"], artifact.folder), _interface(record, artifact.folder))


def load_spec(artifact: Artifact) -> tuple[Model, Interface, str]:
    """The Spec, interface and side that an artifact's network was built from."""
    record = artifact.json(STRUCTURE, Structure)
    return _spec(record["base"], artifact.folder), _interface(record, artifact.folder), str(record["side"])


def _spec(data: Any, source: object) -> Model:
    found = described_by("decoct.models", data, f"{source}/{STRUCTURE}")
    assert isinstance(found, Model)
    return found


def _interface(record: Mapping[str, Any], source: object) -> Interface:
    try:
        return Interface.parse(record["interface"])
    except RecipeError as error:
        raise IntegrityError(f"{source}/{STRUCTURE} is damaged: {error}") from None


def _structure(spec: Model, interface: Interface, given: Mapping[str, Any]) -> nn.Module:
    return fresh(spec, interface, given, pretrained=False).cpu()


def _build(
    record: Mapping[str, Any], weights: Mapping[str, Tensor], given: Mapping[str, Any], source: str
) -> nn.Module:
    spec, interface = _spec(record["base"], source), _interface(record, source)
    with nullcontext() if spec.use == "given" else understood(f"{source}/{STRUCTURE}"):  # a class of the user's own
        module = _structure(spec, interface, given)
    with understood(f"{source}/{STRUCTURE}"):
        for stage in record["stages"]:
            if stage["use"] == "deltas":
                module = rebuild(module, stage["deltas"])
            else:
                module = parse(stage, source).apply(module)
        full = {**weights, **{name: weights[first] for name, first in record["aliases"].items()}}
        fill(module, all_tensors(module), full, source)
    return module


def _stored(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to write, each once, in memory of their own; and the further names of those that have several."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in all_tensors(module).items():
        if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise CannotRebuild(f"{name}: it holds no numbers yet; run the model once before it is saved")
        if first.setdefault(id(tensor), name) != name:
            aliases[name] = first[id(tensor)]
        else:
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    for name in module.state_dict():
        if name.endswith("_extra_state"):
            raise CannotRebuild(f"{name.rpartition('.')[0]}: it keeps state that is no tensor (get_extra_state)")
    return tensors, aliases


def _compare(module: nn.Module, again: nn.Module, probe: Probe | None) -> None:
    for name, tensor in all_tensors(module).items():
        if not _same(tensor.detach().cpu(), all_tensors(again)[name]):
            raise CannotRebuild(f"{name}: its values were not kept")
    if probe is None:
        return
    device = next((tensor.device for tensor in all_tensors(module).values()), torch.device("cpu"))
    again.to(device)
    with evaluating(module, again), torch.no_grad():
        if _all_same(probe(module), probe(again)):
            return
        with _laid_out_plainly(module):
            if _all_same(probe(module), probe(again)):
                return
            path = _first_difference(module, again, probe)
    raise CannotRebuild(
        f"{path or type(module).__name__}: rebuilt from its description it answers otherwise; hooks, or attributes "
        f"that are no plain data, cannot be written down. Pass the model from Python (given) or remove them"
    )


def _first_difference(module: nn.Module, again: nn.Module, probe: Probe) -> str:
    """Path of the first innermost module whose output differs."""
    paths = [name for name, each in again.named_modules() if name and not list(each.children())]
    with capture(module, paths) as left, capture(again, paths) as right:
        probe(module)
        probe(again)
    for path in paths:
        try:
            if not _same(left[path], right[path]):
                return path
        except RecipeError:
            continue
    return ""


@contextmanager
def _laid_out_plainly(module: nn.Module) -> Iterator[None]:
    """Contiguous, aligned memory for all tensors meanwhile: memory mapped or channels-last weights round otherwise."""
    held = {id(tensor): (tensor, tensor.data) for tensor in all_tensors(module).values()}
    try:
        for tensor, data in held.values():
            tensor.data = data.clone(memory_format=torch.contiguous_format)
        yield
    finally:
        for tensor, data in held.values():
            tensor.data = data


def _all_same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(map(_same, left, right))


def _same(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit, but for the signs of zeros and the bits of NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.dtype.is_floating_point or left.dtype.is_complex:
        return bool(((left == right) | ((left != left) & (right != right))).all())
    return torch.equal(left, right)

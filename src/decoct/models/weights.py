"""Weights by name: reading files of them, filling a module strictly, collecting a module's own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from decoct.artifact import is_full, no_space
from decoct.errors import DataError, RecipeError, nearest
from decoct.memory import require_memory, require_unzipped

SHOWN = 6
"""At most so many keys of each sort are named in an error."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file, which another process converts first.

    DataError where the file is absent or damaged, ResourceError where its tensors would not fit into memory.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights; check `path`")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if zipfile.is_zipfile(path):
        require_unzipped(path)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "weights.safetensors"
        script = Path(__file__).with_name("convert.py")
        command = [sys.executable, "-I", str(script), str(path.resolve()), str(converted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            if is_full(OSError(reason)):
                raise no_space(converted, path.stat().st_size)
            raise DataError(
                f"{path}: not readable as plain weights ({reason[:300]}); save it as "
                f"safetensors.torch.save_file(model.state_dict(), ...) or torch.save(model.state_dict(), ...)"
            )
        return read_safetensors(converted)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in memory of their own."""
    require_memory(path.stat().st_size, f"{path}: reading it", "take weights that fit into memory")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: damaged or no safetensors file ({error})") from None


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by each of its names, persistent or not; shared ones occur under several names."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found


def fill(module: nn.Module, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Copies `weights` into `expected`, tensors of `module`, in place.

    A tensor with several names needs only one of them. RecipeError where names or shapes differ, with the nearest.
    """
    weights = _by_every_name(expected, weights)
    problems = mismatches(expected, weights)
    if problems:
        raise RecipeError(f"{source} does not fit {type(module).__name__}: " + "; ".join(problems))
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])


def mismatches(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """What keeps `weights` from filling `expected`, one sentence for each sort."""
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    wrong = [
        f"{name} is {_shape(weights[name])}, {_shape(tensor)} is needed"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    lacking = [f"{name} {_shape(expected[name])}{_near(name, unexpected, weights)}" for name in missing[:SHOWN]]
    over = [f"{name} {_shape(weights[name])}" for name in unexpected[:SHOWN]]
    sentences = []
    if missing:
        sentences.append("missing " + ", ".join(lacking) + _more(missing))
    if unexpected:
        sentences.append("unexpected " + ", ".join(over) + _more(unexpected))
    if wrong:
        sentences.append(", ".join(wrong[:SHOWN]) + _more(wrong))
    return sentences


def _by_every_name(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    present = {id(tensor): weights[name] for name, tensor in expected.items() if name in weights}
    shared = {name: present[id(t)] for name, t in expected.items() if name not in weights and id(t) in present}
    return {**weights, **shared}


def without_prefix(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the `module.` that DataParallel puts before each name, where the module has none."""
    prefix = "module."
    wrapped = bool(weights) and all(name.startswith(prefix) for name in weights)
    if wrapped and not any(name.startswith(prefix) for name in expected):
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _near(name: str, unexpected: list[str], weights: Mapping[str, Tensor]) -> str:
    close = nearest(name, unexpected, count=1)
    return f" (the file has {close[0]} {_shape(weights[close[0]])})" if close else ""


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _more(names: list[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""

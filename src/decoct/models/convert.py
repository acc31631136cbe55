"""Turns a torch file of weights into safetensors, in a process of its own: `python -I convert.py FROM TO`.

The file is untrusted: it is read with weights_only=True, and nothing but tensors leaves this process.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema")
"""Keys under which trainers put a state dict."""


def unwrapped(content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, or of a checkpoint that holds exactly one under a known key."""
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, no state dict")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors:
        return tensors
    inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    if len(inner) != 1:
        raise ValueError(f"it holds no tensors but {', '.join(map(repr, content)) or 'nothing'}")
    return unwrapped(content[inner[0]])


def main(source: str, destination: str) -> None:
    """Reads one file, writes the other; the reason of a failure is the last line on stderr."""
    content = torch.load(Path(source), map_location="cpu", weights_only=True, mmap=False)
    state = {key: value.detach().clone().contiguous() for key, value in unwrapped(content).items()}
    save_file(state, destination)


if __name__ == "__main__":
    main(*sys.argv[1:3])

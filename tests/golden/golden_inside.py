"""What the golden tests take from inside of decoct: when a module moves, its new place is written here alone."""

import torch

from decoct import cli
from decoct.meters import machine

__all__ = ["call", "this_machine"]


def call(*words: object) -> int:
    """The exit code of the command `decoct` with these words, in this process."""
    return cli.call([str(each) for each in words])


def this_machine() -> str:
    """What decides how sums are rounded: the processor, what torch uses of it, and torch's version."""
    return f"{machine.machine()['cpu']}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"

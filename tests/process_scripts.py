"""What a user's script does under torchrun: `python process_scripts.py OUT` in each process, run by
runner/test_processes.py. It trains, meets an error, and at last one process is killed."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import decoct as dc
from decoct.errors import DataError, DecoctError, RecipeError
from decoct.training.processes import joined

RANK = int(os.environ.get("RANK", "0"))
SHORT = {"batch_size": 8, "log_every": 1, "optimizer": dc.SGD(lr=0.1), "budget": dc.Budget(epochs=2)}


def network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 3))
    return nn.Sequential(*layers)


def loader(*, shuffle: bool, samples: int = 21) -> DataLoader:
    """Batches of 5, the last of 1: one process gets none of it."""
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(samples, 1, 8, 8, generator=random), torch.randint(3, (samples,), generator=random)
    return DataLoader(TensorDataset(x, y), batch_size=5, shuffle=shuffle)


class Failing:
    """A loader that fails, or whose process dies, in one process alone at its third batch."""

    def __init__(self, how: str) -> None:
        self.how, self.inner = how, loader(shuffle=False)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[object]:
        for number, item in enumerate(self.inner):
            if number == 2 and RANK == 1 and self.how == "raises":
                raise DataError("sample 7 of the second disk cannot be read")
            if number == 2 and RANK == 1 and self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


def trains(out: Path) -> None:
    """Distils twice in one script, and between them asks for something that cannot be."""
    val = loader(shuffle=False)
    first = dc.distill(network(4, 1), network(3, 2), loader(shuffle=True), val, out=out / "first", **SHORT)
    try:
        dc.distill(network(4, 1), network(3, 2), loader(shuffle=True), val, objective=dc.KD() + dc.DIST(), **SHORT)
    except RecipeError as error:
        (out / f"refused-{RANK}").write_text(str(error))
    again = dc.distill(network(4, 1), network(3, 3), loader(shuffle=True), val, **SHORT)
    assert again.folder == Path(again.artifact.folder).parent
    weights = torch.cat([each.detach().flatten() for each in first.student.parameters()])
    (out / f"sum-{RANK}").write_text(repr(float(weights.double().sum())))


def raises(out: Path) -> None:
    """One process's loader fails; all of them say so, and go on."""
    try:
        dc.distill(network(4, 1), network(3, 2), Failing("raises"), out=out / "fails", select="last", **SHORT)
    except DecoctError as error:
        (out / f"failed-{RANK}").write_text(f"{type(error).__name__}: {error}")
    with joined("cpu") as processes:
        (out / f"after-{RANK}").write_text(str(processes.most([RANK])))


def dies(out: Path) -> None:
    """One process is killed; the other ends."""
    dc.distill(network(4, 1), network(3, 2), Failing("dies"), out=out / "dies", select="last", **SHORT)


if __name__ == "__main__":
    for work in (trains, raises, dies):
        work(Path(sys.argv[1]))

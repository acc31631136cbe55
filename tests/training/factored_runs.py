"""One process of several: an optimizer step of a small language model over hidden states and its head, or over logits
written out; the weights after it go to a file. Run by test_factored_processes.py as torchrun does."""

import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import decoct as dc
from decoct.data.parts import own_part
from decoct.models.heads import run_factored
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock
from decoct.training.processes import Processes, joined
from decoct.training.sharding import Sharded
from decoct.training.updates import Descent, Engine

CLASSES, WIDTH, LENGTH = 13, 8, 6
TASK = dc.LanguageModel(raw=True, tokens=CLASSES)
CUTS = {"whole": (6,), "two": (3, 3), "one": (1, 5)}
KEPT = {"all": slice(0, 6), "first": slice(0, 1)}
"""Samples of which places count: of the latter every process but the first has none."""


class Layer(nn.Module):
    """A linear layer and tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Language(nn.Module):
    """A table, two blocks, and a head, which may be the table; `blocks` False: no list that is sharded by itself."""

    def __init__(self, tied: bool, blocks: bool) -> None:
        super().__init__()
        layers = [Layer(), Layer()]
        self.table, self.norm = nn.Embedding(CLASSES, WIDTH), nn.LayerNorm(WIDTH)
        self.first, self.second = layers if not blocks else (nn.Identity(), nn.Identity())
        self.blocks = nn.ModuleList(layers if blocks else [])
        self.head = nn.Linear(WIDTH, CLASSES, bias=not tied)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        found = self.second(self.first(self.table(ids)))
        for each in self.blocks:
            found = each(found)
        return self.head(self.norm(found))


def texts(kept: slice) -> Batch:
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(CLASSES, (6, LENGTH), generator=random)
    counts = torch.rand(6, LENGTH, generator=random) < 0.8
    counts &= torch.isin(torch.arange(6), torch.arange(6)[kept])[:, None]
    return Batch({"student": ids}, torch.where(counts, ids.roll(1, 1), -100))


def step(
    processes: Processes, factored: bool, *, tied: bool, blocks: bool, sharded: bool, cut: str, kept: str
) -> Mapping[str, Tensor]:
    """The weights after one step of plain descent, and what was logged."""
    torch.manual_seed(0)
    student, teacher = Language(tied, blocks).double(), Language(False, True).double()
    engine = Engine("cpu", processes=processes)
    engine.prepare([student])

    def outputs(model: nn.Module, batch: Batch) -> Outputs:
        ids = batch.side("student")
        found = run_factored(model, lambda: model(ids), "head") if factored else Outputs(model(ids))
        return replace(found, mask=batch.target != -100)

    def teacher_outputs(batch: Batch) -> Outputs:
        with torch.no_grad():
            return outputs(teacher, batch)

    whole = texts(KEPT[kept])
    with torch.no_grad():
        first = whole.take(slice(0, 2))
        probe = Probe(TASK, first, outputs(student, first), {"teacher": teacher_outputs(first)}, {})
    criterion = Criterion.build(0.7 * dc.KD(temperature=2) + 0.3 * dc.CrossEntropy(), probe)
    if sharded and processes.several:
        engine.shard(student)
    window = [whole.take(rows) for rows in torch.arange(6).split(CUTS[cut])]
    if processes.several:
        window = [own_part(each, processes.rank, processes.count) for each in window]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    update = Descent(lambda batch: outputs(student, batch), {"teacher": teacher_outputs}, criterion, optimizer, engine)
    logged = update(window, Clock())
    weights = Sharded(student).state_dict() if sharded and processes.several else student.state_dict()
    return {**weights, **{f"logged.{name}": each for name, each in logged.items()}}


def main(out: Path) -> None:
    with joined("cpu") as processes:
        found: dict[str, Tensor] = {}
        for tied, blocks, sharded, cut, kept in itertools.product(
            (False, True), (False, True), (False, True), CUTS, KEPT
        ):
            name = f"tied={tied} blocks={blocks} sharded={sharded} {cut} {kept}"
            for factored in (True, False) if not processes.several else (True,):
                made = step(processes, factored, tied=tied, blocks=blocks, sharded=sharded, cut=cut, kept=kept)
                found |= {f"{name}/{'factored' if factored else 'dense'}/{key}": each for key, each in made.items()}
        save_file({name: each.detach().clone() for name, each in found.items()}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""One process of several: an optimizer step on its share of a window; the gradients go to a file. Run by
test_processes.py with RANK and WORLD_SIZE set, as torchrun sets them."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import decoct as dc
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock
from decoct.training.updates import Descent, Engine

CLASSES, WIDTH = 5, 6
OBJECTIVES = {
    "kd": 0.9 * dc.KD(temperature=3) + 0.1 * dc.CrossEntropy(on="labelled"),
    "many": dc.JSD() + 0.5 * dc.DKD(temperature=2) + 0.1 * dc.LogitMSE() + 0.3 * dc.CrossEntropy(on="labelled"),
    "relational": dc.KD() + dc.DIST(),
}


def samples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets, and who is labelled."""
    random = torch.Generator().manual_seed(3)
    x = torch.randn(13, WIDTH, generator=random, dtype=torch.float64)
    return x, torch.randint(CLASSES, (13,), generator=random), torch.arange(13) % 3 == 0


def main(objective: str, cuts: list[int], out: Path) -> None:
    """`cuts`: after which samples the window is cut into batches; batch i goes to process i modulo their number."""
    torch.manual_seed(0)
    student, teacher = nn.Linear(WIDTH, CLASSES).double(), nn.Linear(WIDTH, CLASSES).double()
    x, y, labelled = samples()
    pieces = torch.arange(13).tensor_split(cuts)

    def batch(rows: torch.Tensor) -> Batch:
        return Batch({"student": x[rows]}, y[rows], labelled[rows])

    def say(module: nn.Module, each: Batch) -> Outputs:
        return Outputs(module(each.side("student")))

    def heard(each: Batch) -> Outputs:
        with torch.no_grad():
            return say(teacher, each)

    first = batch(pieces[0])
    task = dc.ImageClassification(raw=True)
    probe = Probe(task, first, say(student, first), {"teacher": heard(first)}, {"student": student}, {}, None)
    criterion = Criterion.build(OBJECTIVES[objective], probe)
    engine = Engine("cpu")
    own = [batch(rows) for number, rows in enumerate(pieces) if number % engine.processes == engine.rank]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    update = Descent(lambda each: say(student, each), {"teacher": heard}, criterion, optimizer, engine)
    update(own, Clock())
    gradients = {name: each.grad for name, each in student.named_parameters()}
    save_file({**gradients, **{f"{k}.after": v for k, v in student.state_dict().items()}}, out)


if __name__ == "__main__":
    main(sys.argv[1], [int(each) for each in sys.argv[2].split(",") if each], Path(sys.argv[3]))
    if torch.distributed.is_initialized():  # neither leaves while the other still talks to it
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        os._exit(0)  # gloo's threads may not survive the interpreter's own end

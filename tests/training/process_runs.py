"""One process of several: optimizer steps on its parts of windows, under many settings; gradients, buffers and what was
logged go to a file. Run by test_processes.py with RANK and WORLD_SIZE set, as torchrun sets them."""

import copy
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import decoct as dc
from decoct.data.given import LoaderSource
from decoct.data.parts import Padding, own_part, parts
from decoct.errors import RecipeError
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.outputs import Batch, Outputs
from decoct.training.budget import Budget
from decoct.training.clock import Clock
from decoct.training.fit import Guard, Options, State, fit
from decoct.training.processes import Processes, joined, refusing_other_batches
from decoct.training.sharding import Sharded, ShardedOptimizer, local, shard
from decoct.training.updates import Descent, Engine, descend, learned, take_step
from position_toys import Tagging

CLASSES, WIDTH, SAMPLES = 5, 6, 13
CUTS: dict[str, tuple[int, ...]] = {"whole": (13,), "three": (7, 4, 2), "five": (1, 4, 2, 5, 1)}
OBJECTIVES = {
    "kd": 0.9 * dc.KD(temperature=3) + 0.1 * dc.CrossEntropy(on="labelled"),
    "many": dc.JSD() + 0.5 * dc.DKD(temperature=2) + 0.1 * dc.LogitMSE() + 0.3 * dc.CrossEntropy(on="labelled"),
    "positions": 0.7 * dc.KD(temperature=2) + 0.3 * dc.CrossEntropy(),
    "relational": dc.KD() + dc.DIST(),
}
TYPES = {"float32": torch.float32, "float64": torch.float64}


class Tokens(nn.Module):
    """An answer for each token, which depends on all tokens that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, WIDTH, padding_idx=0), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        seen = self.embedding(ids)
        mean = seen.sum(1) / (ids > 0).sum(1, keepdim=True)
        return self.head(torch.cat([seen, mean[:, None].expand_as(seen)], dim=-1))


def convolutions() -> nn.Module:
    """Two convolutions with batch normalisation, the second without an affine part."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.BatchNorm2d(6, affine=False, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, CLASSES),
        nn.BatchNorm1d(CLASSES),
    )


@dataclass(frozen=True)
class Kind:
    """A sort of model with its samples: `inputs` of all, and how those of some rows become a batch's."""

    model: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    trim: Callable[[Tensor], Tensor] = lambda rows: rows


def texts(random: torch.Generator) -> Tensor:
    """Ids with 1 to 9 tokens a text, 0 behind them."""
    lengths = torch.randint(1, 10, (SAMPLES, 1), generator=random)
    return torch.randint(1, 11, (SAMPLES, 9), generator=random) * (torch.arange(9) < lengths)


KINDS = {
    "linear": Kind(lambda: nn.Linear(WIDTH, CLASSES), lambda r: torch.randn(SAMPLES, WIDTH, generator=r)),
    "convolutions": Kind(convolutions, lambda r: torch.randn(SAMPLES, 2, 6, 6, generator=r)),
    "texts": Kind(Tokens, texts, lambda ids: ids[:, : int((ids > 0).sum(1).max())]),
}
PAIRS = [("linear", "kd"), ("linear", "many"), ("convolutions", "kd"), ("texts", "positions")]
CASES = [
    (pair, cut, number)
    for pair, cut, number in itertools.product(PAIRS, CUTS, TYPES)
    if pair[0] != "convolutions" or cut != "five"  # a batch of one sample has no statistics, in one process either
]


def case(
    kind: str, objective: str, cut: str, number: torch.dtype, processes: Processes, precision: str = "no"
) -> Mapping[str, Tensor]:
    """Gradients after one window, weights after it, buffers, and what was logged."""
    random, found = torch.Generator().manual_seed(3), KINDS[kind]
    x, labelled = found.inputs(random), torch.arange(SAMPLES) % 3 == 0
    x = x.to(number) if x.is_floating_point() else x
    shape = x.shape if kind == "texts" else (SAMPLES,)
    y = torch.randint(CLASSES, shape, generator=random)
    if kind == "texts":  # KD counts all tokens, cross-entropy those that have a label: more of them in later samples
        share = torch.linspace(0.2, 1.0, SAMPLES).unsqueeze(1)
        y = torch.where((x > 0) & (torch.rand(x.shape, generator=random) < share), y, -100)
    torch.manual_seed(0)
    student, teacher = found.model().to(number), found.model().to(number).eval()

    def batch(rows: Tensor) -> Batch:
        inputs = found.trim(x[rows])
        target = y[rows][:, : inputs.shape[1]] if kind == "texts" else y[rows]
        return Batch({"student": inputs}, target, None if kind == "texts" else labelled[rows])

    def padded_anew(part: Batch) -> Batch:
        rows = found.trim(part.side("student"))
        target = part.target[:, : rows.shape[1]] if kind == "texts" else part.target
        return type(part)({"student": rows}, target, part.labelled)

    def say(module: nn.Module, each: Batch) -> Outputs:
        return Outputs(module(each.side("student")))

    def answer_of_teacher(each: Batch) -> Outputs:
        with torch.no_grad():
            return say(teacher, each)

    def answer(each: Batch) -> Outputs:
        return say(student, each)

    first = batch(torch.arange(4))
    student.eval()
    task = Tagging() if kind == "texts" else dc.ImageClassification(raw=True)
    probe = Probe(task, first, answer(first), {"teacher": answer_of_teacher(first)}, {"student": student}, {}, None)
    criterion = Criterion.build(OBJECTIVES[objective], probe)
    student.train()
    engine = Engine("cpu", precision, processes)
    engine.prepare([student])
    window = [batch(rows) for rows in torch.arange(SAMPLES).split(CUTS[cut])]
    if processes.several:
        window = [padded_anew(own_part(each, processes.rank, processes.count)) for each in window]
    update = Descent(
        answer,
        {"teacher": answer_of_teacher},
        criterion,
        torch.optim.SGD(student.parameters(), lr=0.1),
        engine,
        measure=lambda outputs, teacher_outputs, batch: {
            "largest": teacher_outputs["teacher"].logits.double().square().flatten(1)[:, 0].mean()
        },
    )
    logged = update(window, Clock())
    gradients = {f"{name}.grad": each.grad for name, each in student.named_parameters()}
    return {**gradients, **student.state_dict(), **{f"logged.{name}": each for name, each in logged.items()}}


def sharded(processes: Processes) -> Mapping[str, Tensor]:
    """Weights after two steps of AdamW, clipped, in float64; the second is taken twice from one state.

    Of several processes both models are sharded, and what one process holds of the student is less than the whole.
    """
    random = torch.Generator().manual_seed(5)
    x, y = (
        torch.randn(SAMPLES, 2, 6, 6, generator=random).double(),
        torch.randint(CLASSES, (SAMPLES,), generator=random),
    )
    torch.manual_seed(0)
    student, teacher = convolutions().double(), convolutions().double().eval()
    whole = sum(each.numel() for each in student.parameters())
    engine = Engine("cpu", processes=processes)
    engine.prepare([student])
    if processes.several:
        engine.shard(student)
        shard(teacher, processes, engine.device)
        assert sum(local(each).numel() for each in student.parameters()) < whole
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.05)
    parts: list[Any] = [student, optimizer]
    if processes.several:
        parts = [Sharded(student), ShardedOptimizer(optimizer, student)]

    def step() -> None:
        batch = Batch({"student": x}, y)
        batch = own_part(batch, processes.rank, processes.count) if processes.several else batch
        with torch.no_grad():
            wanted = teacher(batch.side("student")).softmax(-1)
        optimizer.zero_grad()
        with engine.whole_batch(batch):
            total = nn.functional.cross_entropy(student(batch.side("student")), wanted, reduction="none")
        loss = total.sum() * (0.0 if isinstance(batch, Padding) else 1 / SAMPLES)
        engine.backward(loss)
        loss = engine.sum_gradients(learned(optimizer), {"loss": loss})["loss"]
        take_step(loss, optimizer, engine, max_grad_norm=0.05)

    fresh = [copy.deepcopy(each.state_dict()) for each in parts]
    step()
    kept = [copy.deepcopy(each.state_dict()) for each in parts]
    for _ in range(2):
        for each, state in zip(parts, kept):
            each.load_state_dict(copy.deepcopy(state))
        step()
    found = {f"sharded/float64/two/{name}": each.clone() for name, each in parts[0].state_dict().items()}
    for each, state in zip(parts, fresh):
        each.load_state_dict(copy.deepcopy(state))
    step()
    return found | {f"sharded/float64/one/{name}": each.clone() for name, each in parts[0].state_dict().items()}


class Partly(nn.Module):
    """Weights of which one is for samples above 0, one for those below and one for none; nothing is above 2."""

    def __init__(self, number: torch.dtype) -> None:
        super().__init__()
        names = ("always", "above", "below", "never", "unused")
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.ones(2, dtype=number)) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        w = self.weights
        chosen = {"above": x > 0, "below": x < 0, "never": x > 2}
        terms = [(x[rows][:, None] * w[name]).sum(-1).square().sum() for name, rows in chosen.items() if rows.any()]
        return sum(terms, (x[:, None] * w["always"]).sum())


def partly(number: torch.dtype, processes: Processes) -> Mapping[str, Tensor]:
    """Weights after two steps of AdamW, which decays those with a gradient alone."""
    student, engine = Partly(number), Engine("cpu", processes=processes)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1, weight_decay=0.1)
    for window in torch.tensor([[1.0, 0.5, -1.0, -0.5, -0.7, 0.3], [1.0, 2.0, 0.1, 0.2, 0.3, 0.4]], dtype=number):
        batch = Batch({"student": window})
        batch = own_part(batch, processes.rank, processes.count) if processes.several else batch
        descend(student(batch.side("student")), optimizer, engine)
    assert all(student.weights[name].grad is None for name in ("below", "never", "unused"))
    return student.state_dict()


class Drawing:
    """A loader's sampler that draws from the global generator of NumPy, or one with a seed that nobody knows."""

    def __init__(self, own: bool) -> None:
        self.own = own

    def __len__(self) -> int:
        return 2 * SAMPLES

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng() if self.own else np.random
        return iter(draw.permutation(2 * SAMPLES).tolist())


def drawn(processes: Processes, *, own: bool = False) -> list[float]:
    """All samples that this process sees in two epochs of a loader."""
    data = TensorDataset(torch.arange(2.0 * SAMPLES))
    loader = LoaderSource(
        DataLoader(data, batch_size=7, sampler=Drawing(own)), lambda item: Batch({"student": item[0]})
    )
    source = parts(loader, processes.rank, processes.count, refusing_other_batches(processes))
    return [
        x for _ in range(2) for each in source if not isinstance(each, Padding) for x in each.side("student").tolist()
    ]


def all_drawn(processes: Processes) -> None:
    """Over all processes two epochs see each sample twice."""
    counts = torch.bincount(torch.tensor(drawn(processes)).long(), minlength=2 * SAMPLES)
    processes.sum(counts)
    assert counts.tolist() == [2] * 2 * SAMPLES


def rolled_back(processes: Processes) -> Mapping[str, Tensor]:
    """Weights after a run without a work folder that goes back to its start, and what is drawn at each step."""
    student, seen = nn.Linear(2, 2).double(), list[float]()
    nn.init.ones_(student.weight)
    nn.init.zeros_(student.bias)
    optimizer, engine = torch.optim.SGD(student.parameters(), lr=0.1), Engine("cpu", processes=processes)

    def update(window: Sequence[Batch], clock: Clock) -> dict[str, Tensor]:
        x = window[0].side("student")
        seen.append(float(torch.rand(())))
        total = student(x).square().sum() * (0.0 if isinstance(window[0], Padding) else 1.0)
        return descend(total, optimizer, engine)

    x = torch.arange(16.0, dtype=torch.float64).reshape(8, 2) / 16
    x[4] = float("nan")  # in the third batch of each epoch
    loader = LoaderSource(DataLoader(TensorDataset(x), batch_size=2), lambda item: Batch({"student": item[0]}))
    source = parts(loader, processes.rank, processes.count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = Options(guard=Guard(), processes=processes)
        fit(update, source, State(student=student, optimizer=optimizer), Budget(epochs=1), options=options)
    assert seen[:2] == seen[3:5]
    return student.state_dict()


def streamed(processes: Processes, rows: Sequence[int]) -> Mapping[str, Tensor]:
    """Weights after five steps over a stream of as many rows in each process, which nobody knows before."""

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from torch.arange(2.0 * rows[processes.rank % len(rows)], dtype=torch.float64).reshape(-1, 2) / 16

    torch.manual_seed(0)
    student = nn.Linear(2, 2).double()
    optimizer, engine = torch.optim.SGD(student.parameters(), lr=0.1), Engine("cpu", processes=processes)

    def update(window: Sequence[Batch], clock: Clock) -> dict[str, Tensor]:
        losses = [student(x.side("student")).square().sum() for x in window if not isinstance(x, Padding)]
        return descend(sum(losses, 0.0 * student.weight.sum()), optimizer, engine)

    loader = LoaderSource(DataLoader(Stream(), batch_size=3), lambda item: Batch({"student": item}))
    source = parts(loader, processes.rank, processes.count)
    options = Options(accumulate=2, processes=processes)
    fit(update, source, State(student=student, optimizer=optimizer), Budget(steps=5), options=options)
    return student.state_dict()


def in_turn(processes: Processes, folder: Path) -> None:
    """What one process leaves the next finds, and each does something else once where there are several."""
    mark, did = folder / f"mark-{processes.count}", []

    def work() -> bool:
        found = mark.exists()
        mark.touch()
        return found

    assert processes.in_turn(work, lambda: did.append(mark.exists())) is not processes.first
    assert len(did) == (1 if processes.several else 0)
    processes.wait()


def main(out: Path) -> None:
    with joined("cpu") as processes:
        in_turn(processes, out.parent)
        found: dict[str, Tensor] = {}
        for (kind, objective), cut, number in CASES:
            made = case(kind, objective, cut, TYPES[number], processes)
            found |= {f"{kind}/{objective}/{cut}/{number}/{name}": each.clone() for name, each in made.items()}
        for number in ("no", "bf16"):
            made = case("convolutions", "kd", "whole", torch.float32, processes, number)
            found |= {f"precision/{number}/{name}": each.clone() for name, each in made.items()}
        for number, kind in TYPES.items():
            made = partly(kind, processes)
            found |= {f"partly/{number}/{name}": each.clone() for name, each in made.items()}
        all_drawn(processes)
        found |= {f"rolled_back/float64/{name}": each.clone() for name, each in rolled_back(processes).items()}
        found |= {f"streamed/float64/{name}": each.clone() for name, each in streamed(processes, [8]).items()}
        save_file({**found, **sharded(processes)}, out)
        if processes.several:
            try:
                case("linear", "relational", "whole", torch.float64, processes)
            except RecipeError as error:
                out.with_suffix(".refused").write_text(str(error))
            try:
                drawn(processes, own=True)
            except RecipeError as error:
                out.with_suffix(".differ").write_text(str(error))
            try:
                streamed(processes, [8, 14])
            except RecipeError as error:
                out.with_suffix(".unequal").write_text(str(error))


def fails() -> None:
    """An error of this process is raised as it is, and is not its own cause."""
    error = RuntimeError("of this process")
    with pytest.raises(RuntimeError) as caught, joined("cpu"):
        raise error
    assert caught.value is error
    assert error.__cause__ is None


if __name__ == "__main__":
    fails()
    main(Path(sys.argv[1]))

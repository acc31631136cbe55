"""What each objective costs: time and peak extra memory of its forward and backward pass, beside the two models'.

    python benchmarks/objective_cost.py [--size 224] [--batch 32] [--length 128] [--rounds 5] [--out FILE]

Two pairs: ResNet-34 and ResNet-18 on pictures, and encoders of 12 layers (width 768) and 6 (width 384) on tokens. A
term is built as in training, adapters included, and called on features that both nets really gave; its gradient goes to
the student's features and to what the term learns. Time is CPU time with one thread, the least of some rounds. Memory
is the most bytes of tensors alive at once beyond those that were there before, counted at each operation (working space
inside one operation is not seen). Prints a Markdown table.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _shared import command, origin, parser, table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from decoct.models.base import Network
from decoct.models.given import plain_network
from decoct.objectives import CATALOGUE
from decoct.objectives.base import Objective, Probe
from decoct.objectives.criterion import Criterion, needs_of
from decoct.outputs import DENSE, Batch, Dense, Needs, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.text_classification import TextClassification
from decoct.training.clock import Clock

CLASSES = tuple(map(str, range(1000)))
LEFT_OUT = {
    "sum": "joins others",
    "task_loss": "the task's own loss",
    "regression_kd": "for numbers; a few elementwise operations",
}


@dataclass
class Pair:
    """Two nets that answered one batch, and how an objective is pointed at their layers."""

    name: str
    task: Any
    batch: Batch
    student: Outputs
    teacher: Outputs
    passes: dict[str, float]
    layers: dict[str, dict[str, Any]]


class Alive(TorchDispatchMode):
    """The most bytes of new storages alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in _tensors((args, kwargs))}
        for each in _tensors(result):
            storage = each.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.known:
                self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [each for part in value.values() for each in _tensors(part)]
    if isinstance(value, list | tuple):
        return [each for part in value for each in _tensors(part)]
    return []


def timed(work: Callable[[], Any], rounds: int) -> float:
    """Least milliseconds of CPU time."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best * 1e3


def pictures(size: int, count: int) -> Pair:
    from torchvision.models import resnet18, resnet34

    task = ImageClassification(raw=True, classes=CLASSES)
    inputs = torch.randn(count, 3, size, size)
    target = torch.randint(1000, (count,))
    keys = torch.randint(1 << 62, (count,)).numpy().view("uint64")
    batch = Batch({"student": inputs, "teacher": inputs}, target, keys=keys)
    paths = {"layer1", "layer2", "layer3", "layer4", "fc@input", "layer3.1.relu#1@input"}
    own = Needs(features=frozenset(paths))
    theirs = Needs(features=frozenset({*paths, "layer3.1.bn2@weight", "layer3.1.bn2@bias"}))
    one = {"layers": {"layer3": "layer3"}}
    stages = tuple(f"layer{i}" for i in range(1, 5))
    embedding = {"layers": {"fc@input": "fc@input"}}
    pre = "layer3.1.relu#1@input"
    special: dict[str, dict[str, Any]] = {
        "afd": {"student_layers": stages, "teacher_layers": stages},
        "review_kd": {"layers": dict(zip(stages, stages))},
        "fsp": {"student_layers": ("layer1", "layer2"), "teacher_layers": ("layer1", "layer2")},
        "ofd": {"layers": {pre: pre}, "batch_norm": {pre: "layer3.1.bn2"}},
        **dict.fromkeys(("crd", "pkt", "rkd_distance", "rkd_angle"), embedding),
        **dict.fromkeys(("similarity_preserving", "correlation_congruence"), embedding),
        "layer_fusion": {"layers": {"layer4": ("layer4",)}},
        "balanced_cross_entropy": {"counts": (10,) * 1000, "beta": 0.9},
        "other": one,
    }
    tokens = ("attention_mse", "head_alignment", "relation", "patient", "hidden_mse", "hidden_cosine", "layer_fusion")
    left_out: dict[str, dict[str, Any]] = {key: {"skip": True} for key in tokens}
    pair = answered(
        "ResNet-34 / ResNet-18", task, batch, (resnet18(), own), (resnet34(), theirs), {**special, **left_out}
    )
    boxes = torch.rand(count, 8, 2, 2).sort(2).values.flatten(2) * size
    edges = {side: {"edges": torch.randn(count, 100, 4, 17)} for side in ("student", "teacher")}
    heads = {"adversarial": Outputs(Dense(torch.randn(count, 1000)))}
    pair.student = replace(pair.student, values=edges["student"], heads=heads)
    pair.teacher = replace(pair.teacher, values=edges["teacher"])
    pair.layers["focal_global"] = {**one, "boxes": boxes}
    return pair


def encoders(length: int, count: int) -> Pair:
    from transformers import BertConfig, BertForSequenceClassification

    task = TextClassification(raw=True, classes=("no", "yes"))
    ids = torch.randint(1000, (count, length))
    kept = (torch.arange(length) < torch.randint(length // 2, length + 1, (count, 1))).long()
    inputs = {"input_ids": ids, "attention_mask": kept}
    keys = torch.randint(1 << 62, (count,)).numpy().view("uint64")
    batch = Batch({"student": inputs, "teacher": inputs}, torch.randint(2, (count,)), keys=keys)

    def net(layers: int, width: int, heads: int) -> tuple[nn.Module, Needs]:
        config = BertConfig(
            num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads
        )
        model = BertForSequenceClassification(config)
        model.config._attn_implementation = "eager"
        step = layers // 2
        hidden = [f"bert.encoder.layer.{i}" for i in range(layers)]
        queries = [f"bert.encoder.layer.{layers - 1}.attention.self.query"]
        probabilities = [f"bert.encoder.layer.{step}.attention.self[1]"]
        return model, Needs(features=frozenset([*hidden, *queries, *probabilities, "classifier@input"]))

    block, ahead = "bert.encoder.layer.2", "bert.encoder.layer.5"
    self_own, self_their = "bert.encoder.layer.3.attention.self[1]", "bert.encoder.layer.6.attention.self[1]"
    query = "bert.encoder.layer.{}.attention.self.query"
    embedding = {"layers": {"classifier@input": "classifier@input"}}
    special: dict[str, dict[str, Any]] = {
        "attention_mse": {"layers": {self_own: self_their}},
        "head_alignment": {"layers": {self_own: self_their}},
        "relation": {"layers": {query.format(5): query.format(11)}, "heads": 12},
        "layer_fusion": {"layers": {block: tuple(f"bert.encoder.layer.{i}" for i in range(12))}},
        **dict.fromkeys(("crd", "pkt", "rkd_distance", "rkd_angle"), embedding),
        **dict.fromkeys(("similarity_preserving", "correlation_congruence"), embedding),
        "other": {"layers": {block: ahead}},
    }
    maps = ("afd", "review_kd", "fsp", "ofd", "focal_global", "mgd", "factor_translator", "hierarchical_context")
    left_out = {key: {"skip": True} for key in maps}
    return answered("encoder 12×768 / 6×384", task, batch, net(6, 384, 12), net(12, 768, 12), {**special, **left_out})


def answered(
    name: str,
    task: Any,
    batch: Batch,
    student: tuple[nn.Module, Needs],
    teacher: tuple[nn.Module, Needs],
    layers: dict[str, dict[str, Any]],
) -> Pair:
    outputs: dict[str, Outputs] = {}
    passes: dict[str, float] = {}
    for side, (model, needs) in (("teacher", teacher), ("student", student)):
        model.train(side == "student")
        network = plain_network(model, task.reading(side).kind)

        def answer(network: Network = network, needs: Needs = needs, side: str = side) -> Outputs:
            return task.forward(network, batch, needs, side)

        with torch.no_grad():
            outputs[side] = answer()
        with torch.set_grad_enabled(side == "student"):
            passes[side] = timed(partial(model_only, task, network, batch), 2)
    return Pair(name, task, batch, outputs["student"], outputs["teacher"], passes, layers)


def model_only(task: Any, network: Network, batch: Batch) -> Outputs:
    outputs: Outputs = task.forward(network, batch, Needs(), "student")
    return outputs


def objective_for(pair: Pair, key: str) -> Objective | None:
    """The entry pointed at the pair's layers; None where it has nothing to do there."""
    found = CATALOGUE.resolve(key)
    assert issubclass(found, Objective)
    fields = dict(pair.layers.get(key, pair.layers["other"] if "layers" in found.model_fields else {}))
    fields.pop("boxes", None)
    if fields.pop("skip", False):
        return None
    on_features = "layers" in fields or "student_layers" in fields
    if pair.name.startswith("encoder") and not on_features:
        return None
    return found(**fields)


def leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_() if value.is_floating_point() else value


def cost(pair: Pair, objective: Objective, key: str, rounds: int) -> tuple[str, float, float]:
    """The layer, milliseconds, MiB."""
    student = replace(
        pair.student,
        distribution=None if pair.student.logits is None else Dense(leaf(pair.student.logits)),
        features={path: leaf(each) for path, each in pair.student.features.items()},
        values={name: leaf(each) for name, each in pair.student.values.items()},
    )
    boxes = pair.layers.get(key, {}).get("boxes")
    batch = pair.batch if boxes is None else replace(pair.batch, target={"boxes": boxes})
    wanted = needs_of(objective, ["teacher"], DENSE)
    probe = Probe(pair.task, batch, student, {"teacher": pair.teacher}, {})
    criterion = Criterion.build(objective, probe)

    def work() -> None:
        loss, _ = criterion(student, {"teacher": pair.teacher}, batch, Clock())
        outputs = (student.logits, *student.features.values(), *student.values.values())
        leaves = [each for each in outputs if each is not None]
        learned = list(criterion.parameters())
        torch.autograd.grad(loss, [each for each in (*leaves, *learned) if each.requires_grad], allow_unused=True)

    work()
    spent = timed(work, rounds)
    with Alive() as alive:
        work()
    layers = ", ".join(sorted(wanted["student"].features)) or "logits"
    shown = layers if len(layers) < 50 else f"{len(wanted['student'].features)} layers"
    return shown.replace("bert.encoder.layer.", "layer "), spent, alive.most / 2**20


def section(pair: Pair, rounds: int) -> list[str]:
    both = sum(pair.passes.values())
    lines = [
        f"## {pair.name}",
        "",
        f"Forward pass of the teacher {pair.passes['teacher']:.0f} ms (without gradients), of the student "
        f"{pair.passes['student']:.0f} ms.",
        "",
    ]
    rows = []
    for key in CATALOGUE:
        if key in LEFT_OUT:
            continue
        objective = objective_for(pair, key)
        if objective is None:
            continue
        on, spent, memory = cost(pair, objective, key, rounds)
        rows.append((key, on, f"{spent:.1f}", f"{spent / both:.1%}", f"{memory:.1f}"))
        sys.stderr.write(f"{pair.name}: {key} {spent:.1f} ms, {memory:.1f} MiB\n")
    titles = ["term", "on", "ms, forward + backward", "of both forward passes", "extra MiB"]
    return [*lines, *table(titles, rows), ""]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=224, help="pixels of a side")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--length", type=int, default=128, help="tokens")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--out", type=Path)
    options = made.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "# What each objective costs",
        "",
        f"Batch {options.batch}, pictures of {options.size} pixels, {options.length} tokens; CPU time with one thread, "
        f"least of {options.rounds} rounds; memory: the most bytes of tensors alive beyond the features.",
        "",
        f"{origin()} {command('objective_cost', options)}",
        "",
    ]
    for pair in (pictures(options.size, options.batch), encoders(options.length, options.batch)):
        lines += section(pair, options.rounds)
    text = "\n".join(lines)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

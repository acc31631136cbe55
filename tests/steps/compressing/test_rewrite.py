"""Rewriting as a step: the block phase lowers the blocks' errors, goes on from there, survives a kill, refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from decoct.artifact import Artifact
from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.data.tsv import TSV
from decoct.errors import PathError, RecipeError
from decoct.models.saving import load_model
from decoct.models.small_resnet import SmallResNet
from decoct.models.transformers import Transformers
from decoct.pruning.channels import Channels
from decoct.pruning.magnitude import Magnitude
from decoct.rewriting.grouped_attention import GroupedAttention
from decoct.rewriting.low_rank import LowRank
from decoct.rewriting.separable import Separable
from decoct.steps.base import Context
from decoct.steps.compressing.prune import Prune
from decoct.steps.compressing.recovery.iterative import Iterative
from decoct.steps.compressing.recovery.layer_by_layer import LayerByLayer
from decoct.steps.compressing.recovery.none import NoRecovery
from decoct.steps.compressing.rewrite import Rewrite
from decoct.steps.learning.batches import few
from decoct.steps.train import Train
from decoct.tasks.base import Task
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.tokenizers import WordPiece
from decoct.tasks.text_classification import TextClassification
from decoct.training.budget import Budget

MODEL = SmallResNet(width=8, depths=(1, 1))
CUT = Separable(min_channels=4)
SHORT: dict[str, Any] = {"batch_size": 32, "log_every": 1, "augment": False}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=400).open()


@pytest.fixture(scope="module")
def task(data: Dataset) -> ImageClassification:
    return ImageClassification().resolve(data)


def context(folder: Path, data: Dataset, task: Task, name: str, **settings: Any) -> Context:
    work = folder / f".{name}.work"
    return Context(task=task, data=data, name=name, folder=folder / name, work=work, seed=3, device="cpu", **settings)


@pytest.fixture(scope="module")
def trained(data: Dataset, task: ImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    step = Train(name="student", budget=Budget(steps=60), **SHORT)
    return step.run({"model": MODEL}, context(tmp_path_factory.mktemp("student"), data, task, "student"))


def rewritten(folder: Path, data: Dataset, task: ImageClassification, model: Artifact, **settings: Any) -> Artifact:
    step = Rewrite(**{"name": "small", "scheme": CUT, "budget": Budget(steps=20), **SHORT, **settings})
    return step.run({"model": model}, context(folder, data, task, step.name))


def features(artifact: Artifact, data: Dataset, task: ImageClassification) -> torch.Tensor:
    """What a network makes of a few samples before its head."""
    batch = few(context(artifact.folder, data, task, "few"), 64)
    module = load_model(artifact).module
    with torch.no_grad():
        x = task.reading("student").preprocessing()(batch.side("student"))
        outputs: torch.Tensor = module.layer2(module.layer1(module.stem(x)))
    return outputs


def test_blocks_alone(tmp_path: Path, data: Dataset, task: ImageClassification, trained: Artifact) -> None:
    """The errors of all blocks fall, and the whole net comes nearer to the trained one than the cut alone."""
    cut = rewritten(tmp_path / "cut", data, task, trained, recover=NoRecovery())
    fitted = rewritten(tmp_path / "fit", data, task, trained, recover=LayerByLayer(share=1.0))
    blocks = fitted.json("blocks.json")
    assert [each["path"] for each in blocks] == [
        each["path"] for each in cut.json("compression.json")["changes"] if each["before"] != each["after"]
    ]
    assert all(0 < each["after"] < each["before"] < 1 for each in blocks)
    original = features(trained, data, task)
    far, near = ((features(each, data, task) - original).square().mean() for each in (cut, fitted))
    assert near < far
    reports = [each.json("compression.json") for each in (fitted, cut)]
    assert [each.pop("recover")["use"] for each in reports] == ["layer_by_layer", "none"]
    assert reports[0] == reports[1]
    own = {name: each for name, each in load_file(fitted.file("model.safetensors")).items() if name.startswith("head")}
    assert torch.equal(own["head.weight"], load_file(trained.file("model.safetensors"))["head.weight"])


def test_then_the_whole(tmp_path: Path, data: Dataset, task: ImageClassification, trained: Artifact) -> None:
    made = rewritten(tmp_path, data, task, trained, recover=LayerByLayer(share=0.5))
    first = Artifact.load(next((tmp_path / ".small.work" / "steps").glob("blocks-*")))
    assert made.json("blocks.json") == first.json("blocks.json")
    report = made.json("compression.json")
    assert report == first.json("compression.json")
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert report["after"]["macs"] < report["before"]["macs"]
    assert report["after"]["parameters"] == sum(each.numel() for each in load_model(made).module.parameters())
    assert made.json("history.json")["steps"] == first.json("history.json")["steps"] == 10
    assert made.scores["cross_entropy"] < first.scores["cross_entropy"]


class Killed(Exception):
    """Raised where a kill would come."""


def test_goes_on_after_a_kill(tmp_path: Path, data: Dataset, task: ImageClassification, trained: Artifact) -> None:
    """Stopped in either part, the second call ends with the weights of a run that was not stopped."""
    whole = rewritten(tmp_path / "whole", data, task, trained, recover=LayerByLayer(share=0.5))
    step = Rewrite(name="small", scheme=CUT, budget=Budget(steps=20), recover=LayerByLayer(share=0.5), **SHORT)
    for name in ("blocks", "whole net"):

        def progress(done: float, total: float, text: str, name: str = name) -> None:
            if text.startswith("blocks: ") == (name == "blocks"):
                raise Killed

        where = (tmp_path / f"killed in {name}", data, task, "small")
        with pytest.raises(Killed):
            step.run({"model": trained}, context(*where, progress=progress))
        steps = where[0] / ".small.work" / "steps"
        first = [each.stat().st_mtime_ns for each in steps.glob("blocks-*/manifest.json")]
        assert len(first) == (name == "whole net")
        again = step.run({"model": trained}, context(*where))
        assert [each.stat().st_mtime_ns for each in steps.glob("blocks-*/manifest.json")] == first or not first
        ours, theirs = (load_file(each.file("model.safetensors")) for each in (again, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_named_blocks_and_refusals(tmp_path: Path, data: Dataset, task: ImageClassification, trained: Artifact) -> None:
    made = rewritten(
        tmp_path / "a", data, task, trained, scheme=LowRank(rank=4), recover=LayerByLayer(blocks=("layer*",), share=1)
    )
    assert [each["path"] for each in made.json("blocks.json")] == ["layer1", "layer2"]
    for number, (blocks, error, text) in enumerate(
        [
            ("layre1", PathError, "blocks: no module 'layre1'; did you mean layer1"),
            ((), RecipeError, "blocks is empty"),
        ]
    ):
        with pytest.raises(error, match=text):
            rewritten(tmp_path / str(number), data, task, trained, recover=LayerByLayer(blocks=blocks, share=1))
        assert not (tmp_path / str(number) / "small").exists()


def test_channels_that_no_block_keeps_are_refused_in_short(
    tmp_path: Path, data: Dataset, task: ImageClassification, trained: Artifact
) -> None:
    step = Prune(
        name="thin", budget=Budget(steps=2), recover=LayerByLayer(share=1), scheme=Channels(round_to=2), **SHORT
    )
    with pytest.raises(
        RecipeError, match=r"no changed layer \(.* and \d+ more\).*name `blocks`.*recover: after"
    ) as found:
        step.run({"model": trained}, context(tmp_path, data, task, "thin"))
    assert len(str(found.value)) < 320


def test_masks_and_zeros_are_held(tmp_path: Path, data: Dataset, task: ImageClassification, trained: Artifact) -> None:
    step = Prune(
        name="sparse", scheme=Magnitude(ratio=0.5), budget=Budget(steps=8), recover=LayerByLayer(share=0.5), **SHORT
    )
    made = step.run({"model": trained}, context(tmp_path, data, task, "sparse"))
    weight = load_file(made.file("model.safetensors"))
    before = load_file(trained.file("model.safetensors"))
    zeros = {name: each == 0 for name, each in weight.items() if each.ndim == 4}
    assert sum(int(each.sum()) for each in zeros.values()) > 0.4 * sum(each.numel() for each in zeros.values())
    assert all(not torch.equal(weight[name], before[name] * ~zeros[name]) for name in zeros)
    report = made.json("compression.json")
    assert report["after"]["nonzero"] < report["before"]["nonzero"]


def test_rounds_of_low_rank(tmp_path: Path, data: Dataset, task: ImageClassification, trained: Artifact) -> None:
    scheme = LowRank(ratio=0.3, multiple=2, layers=("layer2",))
    made = rewritten(tmp_path, data, task, trained, scheme=scheme, recover=Iterative(rounds=2))
    report = made.json("compression.json")
    changed = {each["path"]: each for each in report["changes"]}
    conv = changed["layer2.0.conv2"]  # 16 x 144 at 0.3: rank 4.32, in twos
    assert (conv["before"], conv["after"]) == (16, 4)
    assert len(report["rounds"]) == 2
    assert report["rounds"][1]["after"]["macs"] < report["rounds"][0]["after"]["macs"] < report["before"]["macs"]


def test_attention_of_a_transformer(tmp_path: Path) -> None:
    """Blocks that take a mask beside the tokens, of other lengths in each batch, come nearer to their originals."""
    rng = np.random.default_rng(0)
    words = [" ".join([*rng.choice(["film", "plot", "the"], n % 6 + 1), ("bad", "good")[n % 2]]) for n in range(120)]
    (tmp_path / "texts.tsv").write_text("".join(f"{text}\t{n % 2}\n" for n, text in enumerate(words)))
    data = TSV(path=tmp_path / "texts.tsv").open()
    task = TextClassification(tokenizer=WordPiece(size=40), max_length=10).resolve(data)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    model = Transformers(config={"model_type": "bert", **sizes})
    first = Train(name="text", budget=Budget(steps=10), **SHORT)
    trained = first.run({"model": model}, context(tmp_path, data, task, "text"))
    for blocks in ("auto", "bert.encoder.layer.*"):
        step = Rewrite(
            name=f"small-{len(blocks)}",
            scheme=GroupedAttention(groups=1),
            budget=Budget(steps=30),
            recover=LayerByLayer(blocks=blocks, share=1),
            select="last",
            **SHORT,
        )
        made = step.run({"model": trained}, context(tmp_path, data, task, step.name))
        (block,) = made.json("blocks.json")
        assert block["path"] == ("bert.encoder.layer.0.attention.self" if blocks == "auto" else "bert.encoder.layer.0")
        assert block["after"] < block["before"], blocks
        key = load_model(made).module.bert.encoder.layer[0].attention.self.key
        assert key[0].weight.shape == (4, 16)

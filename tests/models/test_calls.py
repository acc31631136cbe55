"""How a network is called and what its result means: one output, several heads, results of a kind of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_toys import ClassesFirst
from torch import Tensor, nn

from decoct.artifact import Artifact, writing
from decoct.errors import RecipeError
from decoct.models.base import Network
from decoct.models.calls import call, logits_of, outputs_of, run_plainly
from decoct.models.interface import Interface, Port
from decoct.models.saving import load_model, save_model
from decoct.outputs import Batch, Needs
from decoct.tasks.tabular_classification import TabularClassification

ROWS = Interface(kind="tabular", shape=(4,), outputs=5)
HEADS = ROWS.replace(
    outputs={"digit": Port(kind="logits", shape=(3,)), "garment": Port(kind="logits", shape=(2,))},
)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


class Object:
    """What transformers' models return."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.loss = logits, None


@pytest.mark.parametrize("raw", [LOGITS, {"logits": LOGITS, "hidden": X}, Object(LOGITS)])
def test_logits_of_what_models_return(raw: Any) -> None:
    assert logits_of(raw) is LOGITS
    assert outputs_of(raw, ROWS).logits is LOGITS


@pytest.mark.parametrize("raw", [LOGITS, {"digit": LOGITS[:, :3], "garment": LOGITS[:, 3:]}, Object(LOGITS)])
def test_each_output_is_a_head(raw: Any) -> None:
    found = outputs_of(raw, HEADS)
    assert found.logits is None
    assert list(found.heads) == ["digit", "garment"]
    assert torch.equal(found.heads["digit"].logits, LOGITS[:, :3])
    assert torch.equal(found.heads["garment"].logits, LOGITS[:, 3:])


def test_heads_of_positions_lie_side_by_side_on_the_last_axis() -> None:
    tokens = torch.randn(2, 7, 5)
    outputs = {"tag": Port(kind="logits", shape=(None, 1)), "entity": Port(kind="logits", shape=(None, 4))}
    found = outputs_of(tokens, ROWS.replace(outputs=outputs))
    assert torch.equal(found.heads["tag"].logits, tokens[..., :1])
    assert torch.equal(found.heads["entity"].logits, tokens[..., 1:])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (LOGITS[:, :4], r"logits \[6, 4\] for the heads digit \(3\), garment \(2\); .* or 5 numbers"),
        ({"digit": LOGITS[:, :3]}, "a mapping with digit"),
        ((LOGITS, 1), "a tuple"),
    ],
)
def test_what_is_no_answer_of_several_heads(raw: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        outputs_of(raw, HEADS)


def test_features_of_a_network_with_heads_are_captured() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
    found = run_plainly(net, X, HEADS, Needs(frozenset({"1"})))
    assert torch.equal(found.features["1"], net[1](net[0](X)))
    assert torch.equal(torch.cat([each.logits for each in found.heads.values()], -1), net(X))
    assert not any(each._forward_hooks for each in net.modules())


def test_texts_go_by_keyword_and_all_else_by_position() -> None:
    class Words(nn.Module):
        def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids * attention_mask

    ids, mask = torch.tensor([[1, 2]]), torch.tensor([[1, 0]])
    assert call(Words(), "text", {"input_ids": ids, "attention_mask": mask}).tolist() == [[1, 0]]
    assert torch.equal(call(nn.Identity(), "tabular", X), X)


def test_a_model_reads_its_own_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoct.spec.PLUGINS", {"model_toys"})
    task = TabularClassification(raw=True, classes=tuple("abcde"), shape=(4,))
    torch.manual_seed(0)
    spec = ClassesFirst()
    interface = task.reading("student").interface
    module = spec.build(interface)
    batch = Batch({"student": X}, torch.tensor([0, 1, 2, 3, 4, 0]))
    said = task.forward(Network(module, spec, interface), batch, Needs(), "student")
    assert torch.equal(said.logits, module(X)[1].T)
    assert torch.equal(said.values["hidden"], module(X)[0])
    expected = torch.nn.functional.cross_entropy(module(X)[1].T, batch.target)
    assert torch.equal(task.answer.loss(said, batch), expected)

    with writing(tmp_path / "a", kind="model", name="a") as draft:
        save_model(draft, module, spec, interface, side="student")
    again = load_model(Artifact.load(tmp_path / "a"))
    assert again.spec == spec
    assert torch.equal(task.forward(again, batch, Needs(), "student").logits, said.logits)

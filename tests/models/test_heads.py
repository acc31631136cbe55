"""Models without their heads: transformers' causal ones, whose own logits are the oracle."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decoct.capture import headless
from decoct.errors import PathError
from decoct.models.heads import HeadPlace, find_head, run_factored
from decoct.outputs import Factored

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 61, "head_dim": 8}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61},
    "llama": SMALL,
    "gemma2": SMALL | {"final_logit_softcapping": 0.5},
    "cohere": SMALL | {"logit_scale": 0.25},
    "granite": SMALL | {"logits_scaling": 3.0},
}
PLACES = {
    "gpt2": HeadPlace("lm_head"),
    "llama": HeadPlace("lm_head"),
    "gemma2": HeadPlace("lm_head", softcap=0.5),
    "cohere": HeadPlace("lm_head", scale=0.25),
    "granite": HeadPlace("lm_head", scale=1 / 3),
}
IDS = torch.arange(22).reshape(2, 11) % 61


def causal(kind: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**KINDS[kind], "pad_token_id": 0, **changes})
    made: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    for each in made.parameters():
        each.data.mul_(3.0)
    return made.eval()


def told(model: nn.Module, place: HeadPlace, **settings: Any) -> Any:
    return run_factored(
        model, lambda: model(input_ids=IDS), place.path, scale=place.scale, softcap=place.softcap, **settings
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_and_their_gradients_are_the_models_own(kind: str) -> None:
    model = causal(kind)
    place = find_head(model, lambda: model(input_ids=IDS))
    assert place == PLACES[kind]
    outputs = told(model, place)
    assert isinstance(outputs.distribution, Factored)
    assert outputs.distribution.hidden.shape == (2, 11, 32)
    assert outputs.shape == (2, 11, 61)
    expected = model(input_ids=IDS).logits
    torch.testing.assert_close(outputs.logits, expected, rtol=1e-6, atol=0)
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    parameters = [each for each in model.parameters() if each.requires_grad]
    own, theirs = (torch.autograd.grad((each * pull).sum(), parameters) for each in (outputs.logits, expected))
    for one, two in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * two.abs().max().item())


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_under_autocast_the_product_is_taken_in_its_type(kind: str) -> None:
    model = causal(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, expected = told(model, PLACES[kind]), model(input_ids=IDS).logits
    assert outputs.distribution.dtype == torch.bfloat16
    assert torch.equal(outputs.logits, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert told(model, PLACES[kind], dtype=torch.float32).distribution.dtype == torch.float32


def test_features_are_captured_on_the_way() -> None:
    model = causal("llama")
    outputs = told(model, PLACES["llama"], features=["model.layers.0", "lm_head@input"])
    expected = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert torch.equal(outputs.features["model.layers.0"], expected[1])
    assert torch.equal(outputs.features["lm_head@input"], expected[-1])
    for path in ("*", "lm_head", "lm_head[0]"):
        with pytest.raises(PathError, match="the head gives no logits here"):
            told(model, PLACES["llama"], features=[path])


def test_no_hook_is_left_and_the_model_gives_logits_again() -> None:
    model = causal("gpt2")
    told(model, PLACES["gpt2"])
    with pytest.raises(ZeroDivisionError), headless(model, "lm_head"):
        raise ZeroDivisionError
    assert not model.lm_head._forward_hooks
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=IDS).logits.shape == (2, 11, 61)


class Biased(nn.Module):
    """Adds something to its logits that its config does not say."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.lm_head

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.inner(input_ids=input_ids).logits
        return found + 0.1 * torch.arange(found.shape[-1])


def test_what_is_more_than_a_head_has_none() -> None:
    model = Biased(causal("llama"))
    assert find_head(model, lambda: model(IDS)) is None
    assert find_head(nn.Linear(2, 2), lambda: torch.ones(1, 2)) is None
    scaled = causal("llama")
    scaled.lm_head.forward = lambda hidden: 2 * hidden  # as libraries put themselves in between
    with pytest.raises(PathError, match=r"lm_head is a Linear, and its logits may be more than hidden"):
        told(scaled, PLACES["llama"])
    conv = nn.Sequential(nn.Conv1d(2, 2, 1))
    with pytest.raises(PathError, match="0 is a Conv1d"), headless(conv, "0"):
        pass


def test_a_head_is_called_once_and_read_after_the_pass() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with headless(model, "0") as found:
        with pytest.raises(PathError, match="called 0 times"):
            _ = found.hidden
        model(torch.ones(1, 3))
        with pytest.raises(PathError, match="read when the pass has ended"):
            _ = found.weight
    assert found.weight is model[0].weight
    shared = nn.Linear(3, 3)
    with pytest.raises(PathError, match="called 2 times"):
        run_factored(nn.Sequential(shared), lambda: (shared(torch.ones(1, 3)), shared(torch.ones(1, 3))), "0")


def test_the_weight_is_that_of_after_the_pass() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    old = copy.deepcopy(model)
    with headless(model, "0") as found:
        model(torch.ones(2, 3))
        model[0].weight = nn.Parameter(torch.zeros(4, 3))  # as a sharded module puts a gathered one in its place
    assert found.weight is model[0].weight
    assert not torch.equal(found.weight, old[0].weight)

"""Grouped keys and values: the mean of heads, what is saved of weights and work, files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rewriting_nets import BERT, BERT_CONFIG, TEXT, answer, built, images, onnx_equals, saved_and_loaded, seeing, tokens
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.meters.macs import macs
from decoct.models.base import Interface, Model
from decoct.models.repeat_heads import RepeatHeads
from decoct.models.small_vit import SmallViT
from decoct.models.timm import Timm
from decoct.models.transformers import Transformers
from decoct.rewriting.grouped_attention import GroupedAttention

IMAGE = Interface(kind="image", shape=(3, 32, 32), outputs=3)
SMALL_VIT = SmallViT(patch=4, width=16, depth=2, heads=4)
KEY = "bert.encoder.layer.0.attention.self.key"


def averaged(weight: Tensor, heads: int, groups: int) -> np.ndarray:
    """Rows of each head replaced by the mean over its group, in NumPy."""
    rows = weight.detach().double().numpy().reshape(heads, -1, *weight.shape[1:])
    means = [rows[g * heads // groups : (g + 1) * heads // groups].mean(0) for g in range(groups)]
    return np.concatenate([means[h * groups // heads] for h in range(heads)])


@pytest.mark.parametrize("groups", [1, 2])
def test_bert_answers_as_one_with_averaged_heads(tmp_path: Path, groups: int) -> None:
    x = tokens()
    module, dense = built(BERT, TEXT), built(BERT, TEXT)
    found = GroupedAttention(groups=groups).apply(module, seeing(**x))
    with torch.no_grad():
        for name, each in dense.named_modules():
            if name.endswith((".key", ".value")):
                each.weight.copy_(torch.from_numpy(averaged(each.weight, 4, groups)))
                each.bias.copy_(torch.from_numpy(averaged(each.bias, 4, groups)))
    torch.testing.assert_close(answer(found.module, x), answer(dense, x), atol=1e-6, rtol=0)
    change = next(each for each in found.changes if each.path == KEY)
    assert (change.kind, change.before, change.after) == ("heads", 4, groups)
    lost = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in found.module.parameters())
    assert lost == 2 * 2 * (32 * 32 + 32) * (4 - groups) // 4
    work = {name: value[:1] for name, value in x.items()}
    saved = macs(module, work).total - macs(found.module, work).total
    assert saved == 2 * 2 * 12 * 32 * 32 * (4 - groups) // 4
    saved_and_loaded(tmp_path / "a", found.module, BERT, TEXT, lambda each: answer(each, x))
    onnx_equals(tmp_path / "o", found.module, x)


@pytest.mark.parametrize(
    ("spec", "heads", "groups"), [(Timm(name="test_vit"), 2, 1), (SMALL_VIT, 4, 2), (SMALL_VIT, 4, 1)]
)
def test_vit_answers_as_one_with_averaged_heads(tmp_path: Path, spec: Model, heads: int, groups: int) -> None:
    x = images(2, size=32, channels=3)
    module, dense = built(spec, IMAGE), built(spec, IMAGE)
    width = module.blocks[0].attn.proj.in_features
    found = GroupedAttention(groups=groups).apply(module, seeing(x))
    with torch.no_grad():
        for block in dense.blocks:
            for tensor in (block.attn.qkv.weight, block.attn.qkv.bias):
                q, k, v = tensor.chunk(3)
                means = [torch.from_numpy(averaged(each, heads, groups)).to(q.dtype) for each in (k, v)]
                tensor.copy_(torch.cat([q, *means]))
    torch.testing.assert_close(answer(found.module, x), answer(dense, x), atol=1e-5, rtol=0)
    assert found.module.blocks[0].attn.qkv[0].out_features == width + 2 * groups * width // heads
    saved_and_loaded(tmp_path / "a", found.module, spec, IMAGE, lambda each: answer(each, x))
    onnx_equals(tmp_path / "o", found.module, x)


def test_as_many_groups_as_distinct_heads_loses_nothing() -> None:
    """Where the heads of a group are equal already, the answers are."""
    x = tokens()
    module = built(BERT, TEXT)
    with torch.no_grad():
        for name, each in module.named_modules():
            if name.endswith((".key", ".value")):
                each.weight.copy_(torch.from_numpy(averaged(each.weight, 4, 2)))
                each.bias.copy_(torch.from_numpy(averaged(each.bias, 4, 2)))
    found = GroupedAttention(groups=2).apply(module, seeing(**x))
    torch.testing.assert_close(answer(found.module, x), answer(module, x), atol=1e-6, rtol=0)


def test_repeat_heads_is_numpys_repeat() -> None:
    x = torch.randn(2, 5, 6 + 2 * 3 * 4)
    found = RepeatHeads(6, 3, 4, parts=2, lead=6)(x).numpy()
    rest = np.repeat(x[..., 6:].numpy().reshape(2, 5, 2, 3, 4), 2, axis=3)
    np.testing.assert_array_equal(found, np.concatenate([x[..., :6].numpy(), rest.reshape(2, 5, -1)], -1))


def test_distilbert() -> None:
    config = {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}
    x = tokens()
    module = built(Transformers(config=config), TEXT)
    found = GroupedAttention().apply(module, seeing(**x))
    assert [each.path.rpartition(".")[2] for each in found.changes] == ["k_lin", "v_lin"]
    assert answer(found.module, x).shape == (3, 3)


def test_refusals() -> None:
    x = seeing(**tokens())
    module = built(BERT, TEXT)
    with pytest.raises(RecipeError, match=r"groups is 3, its 4 heads can share in 1, 2"):
        GroupedAttention(groups=3).apply(module, x)
    with pytest.raises(RecipeError, match=r"has 4 heads already"):
        GroupedAttention(groups=4).apply(module, x)
    with pytest.raises(RecipeError, match="works once"):
        GroupedAttention().stage(1, 2)
    once = GroupedAttention().apply(module, x).module
    with pytest.raises(RecipeError, match="its projection is a Sequential"):
        GroupedAttention(groups=1).apply(once, x)
    torch_own = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    with pytest.raises(RecipeError, match="torch's MultiheadAttention keeps its projections in one tensor"):
        GroupedAttention(groups=1).apply(torch_own, seeing(torch.randn(2, 3, 16)))
    one = GroupedAttention(layers=("bert.encoder.layer.0",)).apply(module, x)
    assert {each.path.split(".")[3] for each in one.changes} == {"0"}
    assert BERT_CONFIG["num_attention_heads"] == 4

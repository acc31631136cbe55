"""Layers chosen from one pass, on nets of the libraries; bridges between unlike shapes; what a run shows and saves."""

import json

import pytest
import torch
from torch import nn

import decoct as dc
from decoct.capture import EVERY, capture
from decoct.errors import RecipeError
from decoct.objectives.adapters import Grid, Needed, Resize, bridge
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion
from decoct.objectives.layers import choose_layers, stage_pairs, stages
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.training.clock import Clock

TASK = ImageClassification(raw=True, classes=tuple("abcde"))


def every(model, *args, **kwargs):
    model.eval()
    with torch.no_grad(), capture(model, [EVERY]) as features:
        raw = model(*args, **kwargs)
    return Outputs(raw if isinstance(raw, torch.Tensor) else raw.logits, features=dict(features))


def image_net(name):
    torch.manual_seed(0)
    if name == "vit":
        from torchvision.models import VisionTransformer

        return VisionTransformer(32, 8, 6, 2, 24, 48, num_classes=5)
    if name == "timm_vit":
        import timm

        return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, num_classes=5)
    if name == "timm_resnet":
        import timm

        return timm.create_model("resnet10t", num_classes=5)
    import torchvision

    return getattr(torchvision.models, name)(num_classes=5)


STAGES = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "timm_resnet": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features"],
    "vit": [f"encoder.layers.encoder_layer_{i}" for i in range(6)],
    "timm_vit": [f"blocks.{i}" for i in range(4)],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_the_libraries_nets(name):
    size = 32 if "vit" in name else 64
    assert [path for path, _ in stages(every(image_net(name), torch.zeros(2, 3, size, size)))] == STAGES[name]


def test_blocks_of_an_encoder():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}
    both = []
    for layers in (3, 6):
        net = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **sizes))
        both.append(every(net, input_ids=torch.ones(2, 7, dtype=torch.long)))
    pairs = stage_pairs("hidden_mse", *both)
    assert [own.removesuffix("[0]") for own in pairs] == [f"bert.encoder.layer.{i}" for i in range(3)]
    assert [theirs.removesuffix("[0]") for theirs in pairs.values()] == [f"bert.encoder.layer.{i}" for i in (1, 3, 5)]


def test_equal_resolution_then_equal_relative_depth():
    x = torch.zeros(2, 3, 64, 64)
    cnn, other = every(image_net("resnet18"), x), every(image_net("mobilenet_v2"), x)
    assert stage_pairs("at", cnn, other) == {
        "layer1": "features.3",
        "layer2": "features.6",
        "layer3": "features.13",
        "layer4": "features",
    }
    vit = every(image_net("vit"), torch.zeros(2, 3, 32, 32))
    block = "encoder.layers.encoder_layer_"
    assert stage_pairs("at", cnn, vit) == {f"layer{i + 1}": f"{block}{j}" for i, j in enumerate((1, 2, 3, 5))}
    with pytest.raises(RecipeError, match="at: layers is auto, and the teacher has no stages"):
        stage_pairs("at", cnn, Outputs(torch.zeros(2, 5)))


def test_choosing_asks_only_for_what_is_open_and_keeps_the_rest():
    x = torch.zeros(2, 3, 64, 64)
    nets = {"student": image_net("resnet18"), "big": image_net("mobilenet_v2")}
    asked = []

    def look(role, needs):
        asked.append(role)
        return every(nets[role], x)

    given = 0.5 * dc.KD() + dc.Hint(layers={"layer3": "features.13"})
    assert choose_layers(given, ["big"], look) == given
    assert asked == []
    chosen = choose_layers(given + dc.RKDAngle(layers="auto") + dc.NST(layers="auto"), ["big"], look)
    assert asked == ["student", "big"]
    terms = {each.label: each for each in chosen.flat()}
    assert terms["rkd_angle"].layers == {"fc@input": "classifier.1@input"}
    assert len(terms["nst"].layers) == 4
    with pytest.raises(RecipeError, match="relation: layers is auto, and only you know where its features are"):
        choose_layers(dc.Relation(layers="auto"), ["big"], look)
    with pytest.raises(RecipeError, match="'somewhere' are no layers; write pairs"):
        dc.Hint(layers="somewhere")


def outputs(logits=True, **features):
    torch.manual_seed(1)
    made = {name: torch.randn(4, *size) for name, size in features.items()}
    return Outputs(torch.randn(4, 5) if logits else None, features=made)


def built(objective, student, teacher):
    return Criterion.build(objective, Probe(TASK, Batch({"student": torch.zeros(4, 1)}), student, {"t": teacher}, {}))


@pytest.mark.parametrize(
    ("own", "theirs", "adapter", "text"),
    [
        ((6, 8, 8), (9, 4, 4), "auto", "resized to 4×4, regressor 6 to 9"),
        ((6, 4, 4), (9, 8, 8), "conv", "resized to 8×8, conv 6 to 9"),
        ((6, 4, 4), (6, 4, 4), "linear", "linear 6 to 6"),
        (
            (6, 8, 8),
            (17, 9),
            "auto",
            "resized to 4×4, regressor 6 to 9, teacher's tokens without the first 1 as a 4×4 map",
        ),
        ((17, 9), (6, 8, 8), "auto", "tokens without the first 1 as a 4×4 map, resized to 8×8, regressor 9 to 6"),
        ((17, 9), (16, 9), "auto", "tokens without the first 1 as a 4×4 map, teacher's tokens as a 4×4 map"),
        ((5, 9), (5, 6), "linear", "linear 9 to 6"),
        ((9,), (6, 8, 8), "auto", "linear 9 to 6, teacher's averaged over positions"),
        ((6, 8, 8), (9, 4, 4), "pool", "averaged over positions, linear 6 to 9, teacher's averaged over positions"),
    ],
)
def test_bridges_by_name(own, theirs, adapter, text):
    student, teacher = outputs(a=own), outputs(b=theirs)
    student.features["a"].requires_grad_()
    criterion = built(dc.Hint(layers={"a": "b"}, adapter=adapter), student, teacher)
    assert [each["adapter"] for each in criterion.layers()] == [text]
    loss, _ = criterion(student, {"t": teacher}, Batch({"student": torch.zeros(4, 1)}), Clock())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(each.grad is not None for each in criterion.parameters())
    assert criterion.splittable is not any(isinstance(each, nn.BatchNorm2d) for each in criterion.modules())


@pytest.mark.parametrize(
    ("own", "theirs", "adapter", "message"),
    [
        (
            (6, 8, 8),
            (9, 4, 4),
            "none",
            r"hint: student a \[4, 6, 8, 8\] and teacher b \[4, 9, 4, 4\], adapter none; hint_loss",
        ),
        ((5, 9), (5, 6), "conv", "adapter is 'conv', which is for maps.*use linear or auto"),
        ((12, 9), (6, 8, 8), "auto", "12 tokens are no square grid"),
        ((2, 12, 9, 3), (2, 6, 8), "heads", r"attention is \[B, H, L, L\]"),
        ((2, 1, 12, 9, 3), (6, 8, 8), "auto", r"allowed: maps \[B, C, H, W\]"),
    ],
)
def test_what_cannot_be_bridged_names_both_paths_and_shapes(own, theirs, adapter, message):
    with pytest.raises(RecipeError, match=message) as caught:
        built(dc.Hint(layers={"a": "b"}, adapter=adapter), outputs(a=own), outputs(b=theirs))
    assert "student a [4" in str(caught.value)
    assert "teacher b [4" in str(caught.value)


def test_grid_and_resize_against_loops():
    x = torch.randn(2, 18, 3)
    grid = Grid(18)(x)
    for i in range(4):
        for j in range(4):
            assert torch.equal(grid[:, :, i, j], x[:, 2 + 4 * i + j])
    maps = torch.randn(2, 3, 8, 8)
    small = Resize(4, 4)(maps)
    for i in range(4):
        for j in range(4):
            expected = maps[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            torch.testing.assert_close(small[:, :, i, j], expected)
    assert Resize(9, 9)(maps).shape == (2, 3, 9, 9)


def test_heads_are_mixed_by_weights_that_sum_to_one():
    student, teacher = outputs(a=(2, 5, 5)), outputs(b=(3, 5, 5))
    criterion = built(dc.AttentionMSE(layers={"a": "b"}), student, teacher)
    assert criterion.layers()[0]["adapter"] == "heads 2 to 3"
    mixed, _ = criterion.terms[0].bridges[0](student.features["a"], teacher.features["b"])
    weight = criterion.terms[0].bridges[0].student[0].weight
    torch.testing.assert_close(weight.sum(-1), torch.ones(3))
    for head in range(3):
        expected = sum(weight[head, i] * student.features["a"][:, i] for i in range(2))
        torch.testing.assert_close(mixed[:, head], expected)
    assert built(dc.AttentionMSE(layers={"a": "a"}), student, student).layers()[0]["adapter"] == "none"


def test_a_bridge_needs_nothing_where_shapes_are_equal():
    x = torch.randn(2, 3, 4, 4)
    made = bridge(Needed("hint", "auto", "regressor", places=True, reshaped=True), "a", x, "b", x)
    assert made.text == "none"
    assert not list(made.parameters())
    assert made(x, x)[0] is x


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet18", "vit"), ("vit", "resnet18"), ("resnet18", "mobilenet_v2")]
)
def test_own_loop_with_layers_found_by_itself(student, teacher):
    x = torch.randn(2, 3, 32, 32)
    objective = dc.Hint(layers="auto") + dc.AttentionTransfer(layers="auto") + dc.PKT(layers="auto")
    with pytest.raises(RecipeError, match="give `example=inputs`"):
        dc.Distiller(image_net(teacher), image_net(student), objective)
    with dc.Distiller(image_net(teacher), image_net(student), objective, example=x) as distiller:
        assert {each["term"] for each in distiller.criterion.layers()} == {"hint", "attention_transfer", "pkt"}
        loss, _ = distiller(x)
        loss.backward()
    assert all(each.grad is not None for each in distiller.criterion.parameters())


RECIPE = """
version: 1
task: {use: image_classification}
data: {use: digits}
models:
  large: {use: small_resnet, width: 8}
  small: {use: small_resnet, width: 4}
steps:
  - {use: train, name: teacher, inputs: {model: large}, budget: {steps: 2}, labels: 60}
  - use: distill
    name: student
    inputs: {model: small, teacher: teacher}
    objective:
      - {use: kd, weight: 0.5}
      - {use: hint, layers: auto}
      - {use: pkt, layers: {head@input: head@input}}
    budget: {steps: 3}
    labels: 60
"""


def test_a_run_shows_its_layers_and_saves_no_adapter(tmp_path):
    from safetensors import safe_open

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = dc.Recipe.load(tmp_path / "recipe.yaml").run(tmp_path / "run")
    student = run.artifact("student")
    records = [json.loads(line) for line in (student.folder / "log.jsonl").read_text().splitlines()]
    assert records[0]["kind"] == "layers"
    shown = [(each["term"], each["student"], each["teacher"], each["adapter"]) for each in records[0]["pairs"]]
    assert shown == [
        ("hint", "layer1", "layer1", "regressor 4 to 8"),
        ("hint", "layer2", "layer2", "regressor 8 to 16"),
        ("hint", "layer3", "layer3", "regressor 16 to 32"),
        ("pkt", "head@input", "head@input", "none"),
    ]
    assert all(record["kind"] != "layers" for record in records[1:])
    net = dc.SmallResNet(width=4).build(student_interface(run), pretrained=False)
    with safe_open(student.folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(net.state_dict())


def student_interface(run):
    from decoct.spec import Choice

    return Choice("decoct.tasks").validate(run.artifact("student").json("task.json")).reading("student").interface


def test_check_sees_layers_that_cannot_be_chosen(tmp_path):
    from decoct.runner.checking import check

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("{use: hint, layers: auto}", "{use: relation, layers: auto}"))
    with pytest.raises(RecipeError, match="only you know where its features are"):
        check(dc.Recipe.load(path))
    path.write_text(RECIPE)
    assert "hint" in check(dc.Recipe.load(path))[1].note


def test_a_batch_norm_takes_a_lone_sample_by_its_running_statistics():
    from decoct.objectives.adapters import Norm

    torch.manual_seed(0)
    made, plain = Norm(3), nn.BatchNorm1d(3)
    for _ in range(3):
        x = torch.randn(5, 3)
        torch.testing.assert_close(made(x), plain(x))
    before = made.norm.running_mean.clone()
    alone = torch.randn(1, 3)
    torch.testing.assert_close(made(alone), plain.eval()(alone))
    assert torch.equal(made.norm.running_mean, before)

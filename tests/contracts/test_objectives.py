"""Contracts that every entry of the catalogue of objectives keeps."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import decoct.objectives
from decoct.objectives.base import Objective, Probe, Sum
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.kd import KD
from decoct.outputs import DENSE, Batch, Outputs
from decoct.spec import Choice
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.regression import Regression
from decoct.training import schedules
from decoct.training.clock import Clock

CATALOGUE = decoct.objectives.CATALOGUE
SIZE, CLASSES = 6, 5
FEATURES = {
    "heads": (2, 5, 3),
    "scores": (2, 5, 5),
    "probabilities": (2, 5, 5),
    "deeper": (5, 4),
    "map": (4, 6, 6),
    "low": (3, 6, 6),
    "tokens": (5, 4),
    "vector": (7,),
}
WIDER = {
    "heads": (2, 5, 4),
    "scores": (3, 5, 5),
    "probabilities": (3, 5, 5),
    "map": (8, 6, 6),
    "low": (5, 3, 3),
    "tokens": (5, 9),
    "deeper": (5, 9),
    "vector": (11,),
}
EXTRA = {
    "balanced_cross_entropy": {"counts": (5, 4, 3, 2, 1), "beta": 0.9},
    "afd": {"student_layers": ("map", "low"), "teacher_layers": ("low", "map")},
    "crd": {"layers": {"vector": "vector"}, "bank": 4096, "dim": 6},
    "head_alignment": {"layers": {"probabilities": "probabilities"}},
    "layer_fusion": {"layers": {"tokens": ("tokens", "deeper")}},
    "localization": {"weights": "weights"},
    "ofd": {"layers": {"map": "map"}, "batch_norm": {"map": "norm"}},
    "review_kd": {"layers": {"map": "map", "low": "low"}, "width": 4},
    "fsp": {"student_layers": ("low", "map"), "teacher_layers": ("low", "map")},
    "sum": {"terms": (KD(weight=0.5), KD(name="again", temperature=2.0))},
    "patient": {"layers": {"tokens": "tokens"}},
    "relation": {"layers": {"heads": "heads"}},
    "attention_mse": {"layers": {"scores": "scores"}},
    "hidden_mse": {"layers": {"tokens": "tokens"}},
    "hidden_cosine": {"layers": {"tokens": "tokens", "vector": "vector"}},
}
NAMES = list(CATALOGUE)
RUNNING = [name for name in NAMES if name != "sum"]
REGRESSION = {"regression_kd"}
SCALED = {"afd", "mgd", "ofd", "review_kd", "factor_translator", "focal_global", "feature_discriminator", "crd"}
"""Features are scaled with the logits where they pass through learned layers."""
MAPS = {
    "hierarchical_context",
    "channel_wise",
    "channel_correlation",
    "pearson_feature",
    "nst",
    "focal_global",
    "mgd",
    "factor_translator",
}
REVERSED = {"feature_discriminator"}
"""Its gradient is not that of its value: tests/objectives/test_learned.py holds it."""
ROBUST = {"ard", "rslad"}
CLASSIFICATION = ImageClassification(raw=True, classes=tuple("abcde"))
NUMBERS = Regression(raw=True, target_mean=(0.0,), target_std=(1.0,))


def spec(name, **fields):
    found = CATALOGUE.resolve(name)
    needed = {"layers": {"map": "map", "vector": "vector"}} if "layers" in found.model_fields else {}
    if name in MAPS:
        needed = {"layers": {"map": "map"}}
    if name == "attention_transfer":
        needed = {"layers": {"map": "map", "tokens": "tokens"}}
    return found(**{**needed, **EXTRA.get(name, {}), **fields})


def outputs(seed, name, dtype=torch.float32, shapes=FEATURES, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = (scale * draw(SIZE, 1 if name in REGRESSION else CLASSES)).to(dtype)
    features = {key: draw(SIZE, *shape) for key, shape in shapes.items()}
    features["probabilities"] = features["probabilities"].softmax(-1)
    features = {key: (scale * each if name in SCALED else each).to(dtype) for key, each in features.items()}
    channels = shapes["map"][0]
    features |= {"norm@weight": draw(channels).to(dtype), "norm@bias": draw(channels).to(dtype)}
    edges = (scale * draw(SIZE, 3, 4, 5)).to(dtype)
    weights = draw(SIZE, 3, 4).abs().to(dtype)
    heads = {"adversarial": Outputs((scale * draw(SIZE, CLASSES)).to(dtype))} if name in ROBUST else {}
    return Outputs(logits, features=features, values={"edges": edges, "weights": weights}, heads=heads)


def leaves(outputs):
    """The same outputs as leaves that take gradients, and the list of them."""
    logits = outputs.logits.clone().requires_grad_()
    features = {key: each.clone().requires_grad_() for key, each in outputs.features.items()}
    values = {key: each.clone().requires_grad_() for key, each in outputs.values.items()}
    heads = {key: Outputs(each.logits.clone().requires_grad_()) for key, each in outputs.heads.items()}
    found = [logits, *features.values(), *values.values(), *(each.logits for each in heads.values())]
    return Outputs(logits, features=features, values=values, heads=heads), found


def joined(outputs, tensors):
    """Outputs with the tensors of `leaves` put back in their places."""
    given = iter(tensors)
    logits = next(given)
    features, values = ({key: next(given) for key in each} for each in (outputs.features, outputs.values))
    heads = {key: Outputs(next(given)) for key in outputs.heads}
    return Outputs(logits, features=features, values=values, heads=heads)


def batch_for(name, labelled=None):
    generator = torch.Generator().manual_seed(99)
    if name in REGRESSION:
        target = torch.randn(SIZE, 1, generator=generator)
        target = target if labelled is None else torch.where(labelled[:, None], target, torch.nan)
    else:
        target = torch.randint(CLASSES, (SIZE,), generator=generator)
        target = target if labelled is None else torch.where(labelled, target, -100)
    if name == "focal_global":
        corners = torch.rand(SIZE, 3, 2, 2, generator=generator).sort(2).values * 24
        target = {"boxes": corners.flatten(2)}
    keys = torch.randint(1 << 62, (SIZE,), generator=generator).numpy().view("uint64")
    return Batch({"student": torch.zeros(SIZE, 3, 24, 24)}, target=target, labelled=labelled, keys=keys)


def build(objective, name, student, teacher, batch):
    task = NUMBERS if name in REGRESSION else CLASSIFICATION
    torch.manual_seed(0)
    return Criterion.build(objective, Probe(task, batch, student, {"teacher": teacher}, {}))


def run(objective, name, student, teacher, batch):
    return build(objective, name, student, teacher, batch)(student, {"teacher": teacher}, batch, Clock())[0]


def gradients(loss, inputs):
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if each is None else each for x, each in zip(inputs, found)]


def part(outputs, index):
    def cut(tensors):
        return {key: each[index] if len(each) == SIZE else each for key, each in tensors.items()}

    heads = {key: part(each, index) for key, each in outputs.heads.items()}
    return Outputs(outputs.logits[index], features=cut(outputs.features), values=cut(outputs.values), heads=heads)


def part_of_batch(batch, index):
    labelled = None if batch.labelled is None else batch.labelled[index]
    target = batch.target
    target = {key: each[index] for key, each in target.items()} if isinstance(target, dict) else target[index]
    inputs = {"student": batch.inputs["student"][index]}
    return Batch(inputs, target=target, labelled=labelled, keys=batch.keys[index.numpy()])


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_and_repr(name):
    for objective in (spec(name), spec(name, weight=0.3), spec(name, weight=schedules.Linear(1, 0))):
        again = Choice("decoct.objectives").validate(objective.plain())
        assert again == objective
        assert hash(again) == hash(objective)
        assert Choice("decoct.objectives").validate(objective.plain(defaults=False)) == objective
        scope = {CATALOGUE.resolve(each).__name__: CATALOGUE.resolve(each) for each in NAMES}
        assert eval(repr(objective), {**scope, "Linear": schedules.Linear}) == objective
    assert isinstance(spec(name), Objective)
    assert 20 < len(CATALOGUE.summary(name)) < 121


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_finite_value_and_gradient_in_every_precision(name, dtype, scale):
    student, inputs = leaves(outputs(1, name, dtype, scale=scale))
    teacher = outputs(2, name, dtype, scale=scale)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = run(spec(name), name, student, teacher, batch_for(name))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(loss)
    for each in gradients(loss, inputs):
        if dtype != torch.float16 or scale == 1.0:
            assert torch.isfinite(each).all()


@pytest.mark.parametrize("name", RUNNING)
def test_no_gradient_into_the_teacher_and_inputs_untouched(name):
    student, inputs = leaves(outputs(3, name))
    teacher, theirs = leaves(outputs(4, name))
    before = [x.clone() for x in inputs + theirs]
    run(spec(name), name, student, teacher, batch_for(name)).backward()
    assert all(x.grad is None for x in theirs)
    assert any(x.grad is not None for x in inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs + theirs, before))


@pytest.mark.parametrize("name", RUNNING)
def test_the_order_of_the_batch_does_not_matter(name):
    student, teacher, batch = outputs(5, name, torch.float64), outputs(6, name, torch.float64), batch_for(name)
    index = torch.tensor([3, 0, 5, 1, 4, 2])
    one = run(spec(name), name, student, teacher, batch)
    two = run(spec(name), name, part(student, index), part(teacher, index), part_of_batch(batch, index))
    assert one.item() == pytest.approx(two.item(), rel=1e-12)


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("on", ["all", "labelled"])
@pytest.mark.parametrize("widths", [FEATURES, WIDER])
@pytest.mark.parametrize("cut", [1, 4])
def test_equal_gradients_under_any_split_or_not_splittable(name, on, widths, cut):
    labelled = torch.tensor([True, False, True, True, False, True])
    batch = batch_for(name, labelled)
    student, inputs = leaves(outputs(7, name, torch.float64))
    narrow = name in ("fsp", "attention_mse")
    teacher = outputs(8, name, torch.float64, FEATURES if narrow else {**FEATURES, **widths})
    objective = spec(name, on=on)
    criterion = build(objective, name, student, teacher, batch)
    if not criterion.splittable:
        return
    label = objective.label
    inputs += list(criterion.parameters())
    whole = gradients(criterion(student, {"teacher": teacher}, batch, Clock())[0], inputs)
    total = criterion.items(batch)[label]
    sums = [torch.zeros_like(x) for x in inputs]
    for index in (torch.arange(cut), torch.arange(cut, SIZE)):
        piece = part_of_batch(batch, index)
        share = {label: criterion.items(piece)[label] / total}
        loss, _ = criterion(part(student, index), {"teacher": part(teacher, index)}, piece, Clock(), share)
        sums = [a + b for a, b in zip(sums, gradients(loss, inputs))]
    for a, b in zip(whole, sums):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("on", ["labelled", "unlabelled"])
def test_a_term_sees_only_its_samples(name, on):
    labelled = torch.tensor([True, False, True, True, False, True])
    objective = spec(name, on=on)
    if on == "unlabelled" and objective.supervised:
        with pytest.raises(ValueError, match="it needs targets"):
            run(objective, name, outputs(9, name), outputs(10, name), batch_for(name, labelled))
        return
    keep = labelled if on == "labelled" else ~labelled
    batch, teacher = batch_for(name, labelled), outputs(10, name, torch.float64)
    student, inputs = leaves(outputs(9, name, torch.float64))
    whole = run(objective, name, student, teacher, batch)
    chosen = keep.nonzero().squeeze(1)
    alone = part_of_batch(replace(batch, labelled=None), chosen)
    expected = run(spec(name), name, part(student, chosen), part(teacher, chosen), alone)
    assert whole.item() == pytest.approx(expected.item(), rel=1e-12)
    for each in gradients(whole, inputs):
        assert len(each) != SIZE or (each[~keep] == 0).all()
    criterion = build(objective, name, student, teacher, batch)
    assert int(criterion.items(batch)[objective.label]) == int(keep.sum())


@pytest.mark.parametrize("name", RUNNING)
def test_nothing_labelled_gives_zero_with_gradient_zero(name):
    student, inputs = leaves(outputs(11, name))
    teacher = outputs(12, name)
    criterion = build(spec(name, on="labelled"), name, student, teacher, batch_for(name))
    batch = batch_for(name, torch.zeros(SIZE, dtype=torch.bool))
    loss, _ = criterion(student, {"teacher": teacher}, batch, Clock())
    assert loss.item() == 0
    assert int(criterion.items(batch)[spec(name).label]) == 0
    loss.backward()
    assert all(x.grad is None or (x.grad == 0).all() for x in inputs)


@pytest.mark.parametrize("name", RUNNING)
def test_masked_positions_do_not_count(name):
    objective = spec(name)
    student, teacher = outputs(13, name, torch.float64), outputs(14, name, torch.float64)
    criterion = build(objective, name, student, teacher, batch_for(name))
    if next(iter(criterion.terms)).selection != "mask":
        return
    mask = torch.tensor([True, True, False, True, False, True])
    values = []
    for fill in (0.0, 1e9, float("nan")):
        dirty = [each.logits.clone() for each in (student, teacher)]
        for each in dirty:
            each[~mask] = fill
        sides = [Outputs(each, mask=mask) for each in dirty]
        values.append(criterion(sides[0], {"teacher": sides[1]}, batch_for(name), Clock())[0].item())
    assert values[0] == values[1] == values[2]


# wsld and adaptive_kl weigh by numbers that take no gradient: tests/parity holds them against frozen weights.
@pytest.mark.parametrize("name", [name for name in RUNNING if name not in {"wsld", "adaptive_kl", *REVERSED}])
def test_gradient_by_finite_differences(name):
    student, inputs = leaves(outputs(15, name, torch.float64))
    teacher, batch = outputs(16, name, torch.float64), batch_for(name)
    if name in REGRESSION:
        batch = replace(batch, target=batch.target.double())
    criterion = build(spec(name), name, student, teacher, batch)
    criterion(student, {"teacher": teacher}, batch, Clock())
    if name == "crd":
        criterion.eval()  # its memory then stays as that one step left it

    def loss(*tensors):
        return criterion(joined(student, tensors), {"teacher": teacher}, batch, Clock())[0]

    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("name", RUNNING)
def test_needs_name_the_layers_of_both_sides(name):
    wanted = needs_of(spec(name), ["teacher"], DENSE)
    objective = spec(name)
    layers = getattr(objective, "layers", None)
    if layers:
        theirs = {path for each in layers.values() for path in ([each] if isinstance(each, str) else each)}
        assert wanted["student"].features == frozenset(layers)
        extra = {"norm@weight", "norm@bias"} if name == "ofd" else set()
        assert wanted["teacher"].features == theirs | extra
    elif "student_layers" in type(objective).model_fields:
        assert wanted["student"].features == frozenset(objective.student_layers)
        assert wanted["teacher"].features == frozenset(objective.teacher_layers)
    else:
        assert not wanted["student"].features


def test_a_sum_flattens_to_its_terms():
    assert [each.label for each in spec("sum", weight=0.5).flat()] == ["kd", "again"]
    assert isinstance(spec("sum"), Sum)


KEPT = ["hidden_mse", "hidden_cosine", "relation", "attention_mse", "head_alignment", "layer_fusion"]


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("on", ["all", "labelled"])
def test_padding_does_not_count_and_splits_add_up_by_kept_positions(name, on):
    layer = {"relation": "heads", "attention_mse": "scores", "head_alignment": "probabilities"}.get(name, "tokens")
    lengths = torch.tensor([5, 2, 3, 1, 4, 5])
    kept = torch.arange(5) < lengths[:, None]
    labelled = torch.tensor([True, False, True, True, False, True])
    batch = Batch({"student": {"input_ids": kept.long(), "attention_mask": kept.long()}}, torch.zeros(6), labelled)
    student, teacher = outputs(17, name, torch.float64), outputs(18, name, torch.float64)
    objective = spec(name, on=on) if name == "layer_fusion" else spec(name, layers={layer: layer}, on=on)
    criterion = build(objective, name, student, teacher, batch)

    def total(outputs, teacher_outputs, piece, shares=None):
        return criterion(outputs, {"teacher": teacher_outputs}, piece, Clock(), shares)[0].item()

    whole = total(student, teacher, batch)
    dirty = student.features[layer].clone()
    if name == "relation":
        dirty[~kept[:, None].expand(6, 2, 5)] = torch.nan
    elif name in ("attention_mse", "head_alignment"):
        dirty[~(kept[:, None, :, None] & kept[:, None, None, :]).expand_as(dirty)] = torch.nan
    else:
        dirty[~kept] = torch.nan
    assert total(replace(student, features={**student.features, layer: dirty}), teacher, batch) == whole
    count, added = criterion.items(batch)[name], 0.0
    for index in (torch.arange(2), torch.arange(2, 6)):
        inputs = {key: each[index] for key, each in batch.inputs["student"].items()}
        piece = Batch({"student": inputs}, batch.target[index], labelled[index])
        share = {name: int(criterion.items(piece)[name]) / int(count)}
        added += total(part(student, index), part(teacher, index), piece, share)
    assert added == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("name", RUNNING)
def test_a_batch_of_one_is_taken_in_training(name):
    whole, teacher, batch = outputs(23, name), outputs(24, name), batch_for(name)
    criterion = build(spec(name), name, whole, teacher, batch)
    one = torch.arange(1)
    student, inputs = leaves(part(whole, one))
    loss, _ = criterion(student, {"teacher": part(teacher, one)}, part_of_batch(batch, one), Clock())
    assert torch.isfinite(loss)
    assert all(torch.isfinite(each).all() for each in gradients(loss, [*inputs, *criterion.parameters()]))


@pytest.mark.parametrize("name", RUNNING)
def test_what_a_term_learned_is_all_in_its_state(name):
    student, teacher, batch = outputs(19, name), outputs(20, name, shapes={**FEATURES, **WIDER}), batch_for(name)
    teacher = outputs(20, name) if name == "fsp" else teacher
    criterion = build(spec(name), name, student, teacher, batch)
    parameters = list(criterion.parameters())
    loss, _ = criterion(student, {"teacher": teacher}, batch, Clock())
    if parameters:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert all(each is not None and torch.isfinite(each).all() for each in found)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, found):
                parameter -= 0.01 * gradient
    torch.manual_seed(77)
    other = Criterion.build(spec(name), criterion_probe(name, student, teacher, batch))
    other.load_state_dict({key: each.clone() for key, each in criterion.state_dict().items()})
    values = [each.eval()(student, {"teacher": teacher}, batch, Clock())[0].item() for each in (criterion, other)]
    assert values[0] == values[1]


def criterion_probe(name, student, teacher, batch):
    task = NUMBERS if name in REGRESSION else CLASSIFICATION
    return Probe(task, batch, student, {"teacher": teacher}, {})


@pytest.mark.parametrize("name", RUNNING)
def test_a_forward_pass_waits_for_no_accelerator(name):
    """Fake tensors of an accelerator have no values: what asks for one (a sync on a real device) raises."""
    student, teacher, batch = outputs(21, name), outputs(22, name), batch_for(name)
    criterion = build(spec(name), name, student, teacher, batch)
    mode = FakeTensorMode(allow_non_fake_inputs=False)

    def away(value):
        if isinstance(value, torch.Tensor):
            with mode:
                return torch.empty(value.shape, dtype=value.dtype, device="cuda")
        if isinstance(value, dict):
            return {key: away(each) for key, each in value.items()}
        return value

    def moved(outputs):
        heads = {key: moved(each) for key, each in outputs.heads.items()}
        return Outputs(away(outputs.logits), features=away(outputs.features), values=away(outputs.values), heads=heads)

    for module in criterion.modules():
        for key, each in list(module.named_parameters(recurse=False)):
            setattr(module, key, torch.nn.Parameter(away(each)))
        for key, each in list(module.named_buffers(recurse=False)):
            setattr(module, key, away(each))
    there = Batch(away(dict(batch.inputs)), away(batch.target), keys=away(torch.from_numpy(batch.keys.view("int64"))))
    with mode, pytest.raises(DataDependentOutputException):
        away(student.logits).sum().item()
    with mode:
        loss, _ = criterion(moved(student), {"teacher": moved(teacher)}, there, Clock())
    assert loss.device.type == "cuda"

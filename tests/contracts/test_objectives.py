"""Contracts that every entry of the catalogue of objectives keeps."""

from dataclasses import replace

import pytest
import torch

import decoct.objectives
from decoct.objectives.base import Objective, Probe, Sum
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.kd import KD
from decoct.outputs import Batch, Outputs
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
    "map": (4, 6, 6),
    "low": (3, 6, 6),
    "tokens": (5, 4),
    "vector": (7,),
}
WIDER = {"heads": (2, 5, 4), "map": (8, 6, 6), "tokens": (5, 9), "vector": (11,)}
EXTRA = {
    "balanced_cross_entropy": {"counts": (5, 4, 3, 2, 1), "beta": 0.9},
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
ROBUST = {"ard", "rslad"}
CLASSIFICATION = ImageClassification(raw=True, classes=tuple("abcde"))
NUMBERS = Regression(raw=True, target_mean=(0.0,), target_std=(1.0,))


def spec(name, **fields):
    found = CATALOGUE.resolve(name)
    needed = {"layers": {"map": "map", "vector": "vector"}} if "layers" in found.model_fields else {}
    if name in ("hierarchical_context", "channel_wise", "channel_correlation", "pearson_feature", "nst"):
        needed = {"layers": {"map": "map"}}
    if name == "attention_transfer":
        needed = {"layers": {"map": "map", "tokens": "tokens"}}
    return found(**{**needed, **EXTRA.get(name, {}), **fields})


def outputs(seed, name, dtype=torch.float32, shapes=FEATURES, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if name in REGRESSION else CLASSES
    logits = (scale * torch.randn(SIZE, classes, generator=generator, dtype=torch.float64)).to(dtype)
    features = {
        key: torch.randn(SIZE, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for key, shape in shapes.items()
    }
    heads = {}
    if name in ROBUST:
        attacked = scale * torch.randn(SIZE, classes, generator=generator, dtype=torch.float64)
        heads = {"adversarial": Outputs(logits=attacked.to(dtype))}
    return Outputs(logits=logits, features=features, heads=heads)


def leaves(said):
    """The same outputs as leaves that take gradients, and the list of them."""
    logits = said.logits.clone().requires_grad_()
    features = {key: each.clone().requires_grad_() for key, each in said.features.items()}
    heads = {key: Outputs(logits=each.logits.clone().requires_grad_()) for key, each in said.heads.items()}
    inputs = [logits, *features.values(), *(each.logits for each in heads.values())]
    return Outputs(logits=logits, features=features, heads=heads), inputs


def batch_for(name, labelled=None):
    generator = torch.Generator().manual_seed(99)
    if name in REGRESSION:
        target = torch.randn(SIZE, 1, generator=generator)
        target = target if labelled is None else torch.where(labelled[:, None], target, torch.nan)
    else:
        target = torch.randint(CLASSES, (SIZE,), generator=generator)
        target = target if labelled is None else torch.where(labelled, target, -100)
    return Batch({"student": torch.zeros(SIZE, 3)}, target=target, labelled=labelled)


def build(objective, name, student, teacher, batch):
    task = NUMBERS if name in REGRESSION else CLASSIFICATION
    torch.manual_seed(0)
    return Criterion.build(objective, Probe(task, batch, student, {"teacher": teacher}, {}))


def run(objective, name, student, teacher, batch):
    return build(objective, name, student, teacher, batch)(student, {"teacher": teacher}, batch, Clock())[0]


def gradients(loss, inputs):
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if each is None else each for x, each in zip(inputs, found)]


def part(said, index):
    return replace(
        said,
        logits=said.logits[index],
        features={key: each[index] for key, each in said.features.items()},
        heads={key: part(each, index) for key, each in said.heads.items()},
    )


def part_of_batch(batch, index):
    labelled = None if batch.labelled is None else batch.labelled[index]
    return Batch({"student": batch.inputs["student"][index]}, target=batch.target[index], labelled=labelled)


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
    teacher = outputs(8, name, torch.float64, FEATURES if name == "fsp" else {**FEATURES, **widths})
    objective = spec(name, on=on)
    criterion = build(objective, name, student, teacher, batch)
    if not criterion.splittable:
        return
    label = objective.label
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
        assert (each[~keep] == 0).all()
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
        sides = [Outputs(logits=each, mask=mask) for each in dirty]
        values.append(criterion(sides[0], {"teacher": sides[1]}, batch_for(name), Clock())[0].item())
    assert values[0] == values[1] == values[2]


# wsld and adaptive_kl weigh by numbers that take no gradient: tests/parity holds them against frozen weights.
@pytest.mark.parametrize("name", [name for name in RUNNING if name not in ("wsld", "adaptive_kl")])
def test_gradient_by_finite_differences(name):
    student, inputs = leaves(outputs(15, name, torch.float64))
    teacher, batch = outputs(16, name, torch.float64), batch_for(name)
    if name in REGRESSION:
        batch = replace(batch, target=batch.target.double())
    criterion = build(spec(name), name, student, teacher, batch)
    keys = list(student.features)

    def loss(logits, *others):
        heads = {key: Outputs(logits=each) for key, each in zip(student.heads, others[len(keys) :])}
        said = Outputs(logits=logits, features=dict(zip(keys, others)), heads=heads)
        return criterion(said, {"teacher": teacher}, batch, Clock())[0]

    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("name", RUNNING)
def test_needs_name_the_layers_of_both_sides(name):
    wanted = needs_of(spec(name), ["teacher"])
    features = getattr(spec(name), "layers", None)
    if features:
        assert wanted["student"].features == frozenset(features)
        assert wanted["teacher"].features == frozenset(features.values())
    elif name != "fsp":
        assert not wanted["student"].features


def test_a_sum_flattens_to_its_terms():
    assert [each.label for each in spec("sum", weight=0.5).flat()] == ["kd", "again"]
    assert isinstance(spec("sum"), Sum)


@pytest.mark.parametrize("name", ["hidden_mse", "hidden_cosine", "relation", "attention_mse"])
@pytest.mark.parametrize("on", ["all", "labelled"])
def test_padding_does_not_count_and_splits_add_up_by_kept_positions(name, on):
    layer = {"relation": "heads", "attention_mse": "scores"}.get(name, "tokens")
    lengths = torch.tensor([5, 2, 3, 1, 4, 5])
    kept = torch.arange(5) < lengths[:, None]
    labelled = torch.tensor([True, False, True, True, False, True])
    batch = Batch({"student": {"input_ids": kept.long(), "attention_mask": kept.long()}}, torch.zeros(6), labelled)
    student, teacher = outputs(17, name, torch.float64), outputs(18, name, torch.float64)
    objective = spec(name, layers={layer: layer}, on=on)
    criterion = build(objective, name, student, teacher, batch)

    def total(said, heard, piece, shares=None):
        return criterion(said, {"teacher": heard}, piece, Clock(), shares)[0].item()

    whole = total(student, teacher, batch)
    dirty = student.features[layer].clone()
    if name == "relation":
        dirty[~kept[:, None].expand(6, 2, 5)] = torch.nan
    elif name == "attention_mse":
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

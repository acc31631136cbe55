"""Criterion: sums, teachers, samples, adapters, errors."""

import pytest
import torch

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.objectives.attention_transfer import AttentionTransfer
from decoct.objectives.base import Probe
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.cross_entropy import CrossEntropy
from decoct.objectives.dkd import DKD
from decoct.objectives.hint import Hint
from decoct.objectives.jsd import JSD
from decoct.objectives.kd import KD
from decoct.objectives.logit_mse import LogitMSE
from decoct.objectives.task_loss import TaskLoss
from decoct.objectives.uld import ULD
from decoct.outputs import DENSE, Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.multi_task import MultiTask
from decoct.tasks.regression import Regression
from decoct.training.clock import Clock
from decoct.training.schedules import Linear
from position_toys import Tagging

TASK = ImageClassification(raw=True, classes=tuple("abcd"))


def outputs_of(seed, classes=4, **features):
    generator = torch.Generator().manual_seed(seed)
    return Outputs(
        distribution=torch.randn(6, classes, generator=generator),
        features={key: torch.randn(6, *shape, generator=generator) for key, shape in features.items()},
    )


def batch(labelled=None):
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    if labelled is not None:
        target = torch.where(labelled, target, -100)
    return Batch({"student": torch.zeros(6, 1)}, target=target, labelled=labelled)


def build(objective, student, teachers, b=None, task=TASK):
    return Criterion.build(objective, Probe(task, b or batch(), student, teachers, {}))


def test_the_total_is_the_sum_written_by_hand_bit_for_bit():
    s, t, b = outputs_of(1), outputs_of(2), batch()
    s.logits.requires_grad_()
    criterion = build(0.9 * KD(temperature=4.0) + 0.1 * CrossEntropy(), s, {"teacher": t})
    total, parts = criterion(s, {"teacher": t}, b, Clock())
    kd = F.kd_loss(s.logits, t.logits, temperature=4.0)
    ce = torch.nn.functional.cross_entropy(s.logits, b.target)
    assert total.item() == (0.9 * kd + 0.1 * ce).item()
    assert parts["kd"].item() == kd.item()
    assert parts["cross_entropy"].item() == ce.item()
    assert not parts["kd"].requires_grad
    assert criterion.labels == ("kd", "cross_entropy")
    assert criterion.items(b) == {"kd": 6, "cross_entropy": 6}


def test_task_loss_and_cross_entropy_agree_for_a_classifier():
    labelled = torch.tensor([True, True, False, True, False, True])
    s, b = outputs_of(3), batch(labelled)
    one, _ = build(TaskLoss(), s, {}, b)(s, {}, b, Clock())
    two, _ = build(CrossEntropy(), s, {}, b)(s, {}, b, Clock())
    assert one.item() == pytest.approx(two.item(), abs=1e-7)
    expected = torch.nn.functional.cross_entropy(s.logits[labelled], b.target[labelled])
    assert two.item() == pytest.approx(expected.item(), abs=1e-7)


def test_weights_and_temperatures_follow_the_clock():
    s, t = outputs_of(4), outputs_of(5)
    criterion = build(Linear(1, 0) * KD(temperature=Linear(8, 2)), s, {"teacher": t})
    half = Clock(progress=0.5)
    assert criterion.weights(half) == {"kd": 0.5, "kd.temperature": 5.0}
    total, parts = criterion(s, {"teacher": t}, batch(), half)
    assert parts["kd"].item() == F.kd_loss(s.logits, t.logits, temperature=5.0).item()
    assert total.item() == 0.5 * parts["kd"].item()


def test_shares_multiply_each_term():
    s, t = outputs_of(6), outputs_of(7)
    criterion = build(KD() + CrossEntropy(), s, {"teacher": t})
    total, parts = criterion(s, {"teacher": t}, batch(), Clock(), {"kd": 0.25, "cross_entropy": torch.tensor(0.5)})
    assert total.item() == pytest.approx(0.25 * parts["kd"].item() + 0.5 * parts["cross_entropy"].item())


def test_one_of_several_teachers():
    s, t = outputs_of(8), {"big": outputs_of(9), "wide": outputs_of(10)}
    criterion = build(KD(teacher="big") + KD(teacher="wide", name="wide") + CrossEntropy(), s, t)
    _, parts = criterion(s, t, batch(), Clock())
    assert parts["kd"].item() == F.kd_loss(s.logits, t["big"].logits).item()
    assert parts["wide"].item() == F.kd_loss(s.logits, t["wide"].logits).item()
    with pytest.raises(RecipeError, match=r"kd: several teachers \(big, wide\); say which one with `teacher`"):
        build(KD(), s, t)
    with pytest.raises(RecipeError, match="teacher is 'bigg'; did you mean big"):
        build(KD(teacher="bigg"), s, t)
    with pytest.raises(RecipeError, match="kd: it needs a teacher, and there is none"):
        build(KD(), s, {})
    layered = AttentionTransfer(layers={"a": "b"}, teacher="wide") + KD(teacher="big")
    wanted = needs_of(layered, ["big", "wide"], DENSE)
    assert wanted["wide"].features == {"b"}
    assert wanted["student"].features == {"a"}
    assert not wanted["big"].features


def heads_of(**classes: int) -> MultiTask:
    heads = {name: {"use": "classes", "classes": [str(i) for i in range(count)]} for name, count in classes.items()}
    return MultiTask.parse({"reads": {"use": "images", "raw": True}, "heads": heads})


def test_one_of_several_heads():
    s = Outputs(heads={"kind": outputs_of(11), "colour": outputs_of(12, classes=3)})
    t = Outputs(heads={"kind": outputs_of(13), "colour": outputs_of(14, classes=3)})
    b = Batch({"student": torch.zeros(6, 1)}, target={"kind": torch.arange(6) % 4, "colour": torch.arange(6) % 3})
    task = heads_of(kind=4, colour=3)
    criterion = build(KD(head="kind") + CrossEntropy(head="colour"), s, {"t": t}, b, task)
    _, parts = criterion(s, {"t": t}, b, Clock())
    assert parts["kd"].item() == F.kd_loss(s.heads["kind"].logits, t.heads["kind"].logits).item()
    assert parts["cross_entropy"].item() == F.cross_entropy(s.heads["colour"].logits, b.target["colour"]).item()
    with pytest.raises(RecipeError, match="head is 'color'; did you mean colour"):
        build(KD(head="color"), s, {"t": t}, b, task)


def test_positions_that_do_not_count():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, generator=generator)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    known = mask & torch.tensor([[True, False, True], [True, True, True]])
    s, t = Outputs(logits), Outputs(2 * logits)
    b = Batch({"student": mask.long()}, target=torch.where(known, 1, -100))
    rest = mask & ~known
    terms = KD() + CrossEntropy() + DKD() + KD(name="here", on="labelled") + KD(name="there", on="unlabelled")
    criterion = build(terms, s, {"t": t}, b, Tagging())
    _, parts = criterion(s, {"t": t}, b, Clock())
    wanted = {"kd": mask, "here": known, "there": rest}
    for name, kept in wanted.items():
        assert parts[name].item() == pytest.approx(F.kd_loss(logits[kept], 2 * logits[kept]).item(), rel=1e-5)
    expected = torch.nn.functional.cross_entropy(logits[known], b.target[known])
    assert parts["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)
    found = {name: int(each) for name, each in criterion.items(b).items()}
    assert found == {"kd": 3, "cross_entropy": 2, "dkd": 2, "here": 2, "there": 1}
    assert criterion.splittable


def test_a_mask_that_only_a_forward_pass_shows_cannot_be_counted():
    logits, mask = torch.randn(6, 3, 4), torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) < 0.7
    s, t = Outputs(logits, mask=mask), {"t": Outputs(2 * logits, mask=mask)}
    criterion = build(KD() + KD(on="labelled", name="again"), s, t)
    assert not criterion.splittable
    value = criterion(s, t, batch(), Clock())[1]["kd"].item()
    assert value == pytest.approx(F.kd_loss(logits[mask], 2 * logits[mask]).item(), rel=1e-5)
    some = torch.tensor([True, False, True, True, False, True])
    value = criterion(s, t, batch(some), Clock())[1]["again"].item()
    both = mask & some[:, None]
    assert value == pytest.approx(F.kd_loss(logits[both], 2 * logits[both]).item(), rel=1e-5)
    said_by_the_task = Batch({"student": mask.long()}, torch.ones(6, 3, dtype=torch.long))
    assert build(KD(), Outputs(logits, mask=torch.ones_like(mask)), t, said_by_the_task, Tagging()).splittable


def test_the_word_of_the_task_is_the_mask():
    logits, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    b = Batch({"student": mask.long()}, torch.ones(2, 3, dtype=torch.long))
    s = Outputs(logits, mask=torch.ones_like(mask))
    criterion = build(KD(), s, {"t": Outputs(2 * logits)}, b, Tagging())
    value = criterion(s, {"t": Outputs(2 * logits)}, b, Clock())[0].item()
    assert value == pytest.approx(F.kd_loss(logits[mask], 2 * logits[mask]).item(), rel=1e-5)
    longer = Outputs(torch.randn(2, 5, 4))
    with pytest.raises(RecipeError, match=r"counts of places \[2, 3\], and the student answers at \[2, 5\]"):
        criterion(longer, {"t": longer}, b, Clock())


def test_sides_of_other_lengths_have_masks_of_their_own_readers():
    drawn = torch.Generator().manual_seed(4)
    ids = {
        "student": torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]),
        "teacher": torch.tensor([[1, 1], [0, 1], [1, 1]]),
    }
    b = Batch(ids, torch.ones(3, 3, dtype=torch.long))
    s, t = Outputs(torch.randn(3, 3, 4, generator=drawn)), Outputs(torch.randn(3, 2, 6, generator=drawn))
    criterion = build(ULD(), s, {"t": t}, b, Tagging())
    masks = {"student_mask": ids["student"][:2] > 0, "teacher_mask": ids["teacher"][:2] > 0}
    assert criterion(s, {"t": t}, b, Clock())[0].item() == F.uld_loss(s.logits[:2], t.logits[:2], **masks).item()
    assert criterion.items(b)["uld"] == 2  # the third answers nowhere
    assert criterion.splittable


def test_places_that_the_task_counts_by_sample_are_as_many_for_each():
    s = Outputs(torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(2)))
    criterion = build(KD() + KD(name="some", on="labelled"), s, {"t": s})
    some = torch.tensor([True, False, True, True, False, True])
    assert {name: int(each) for name, each in criterion.items(batch(some)).items()} == {"kd": 18, "some": 12}
    longer = Outputs(torch.randn(6, 5, 4))
    assert criterion(longer, {"t": longer}, batch(), Clock())[0].item() == 0
    with pytest.raises(RecipeError, match="kd: samples with 5 and with 3 places in one window"):
        criterion(longer, {"t": longer}, batch(), Clock(), {"kd": 0.5, "some": 0.5})


def test_labels_of_several_heads_need_a_head():
    heads = {name: outputs_of(3, classes=4) for name in ("a", "b")}
    some = torch.tensor([True, False, True, True, False, True])
    targets = {"a": torch.arange(6) % 4, "b": torch.where(some, torch.arange(6) % 4, -100)}
    b = Batch({"student": torch.zeros(6, 1)}, targets, {"a": torch.ones(6, dtype=torch.bool), "b": some})
    s = Outputs(outputs_of(4).logits, heads=heads)
    task = heads_of(a=4, b=4)
    criterion = build(CrossEntropy(head="a", name="a") + CrossEntropy(head="b", name="b"), s, {}, b, task)
    assert {name: int(each) for name, each in criterion.items(b).items()} == {"a": 6, "b": 4}
    value = criterion(s, {}, b, Clock())[1]["b"].item()
    expected = torch.nn.functional.cross_entropy(heads["b"].logits[some], targets["b"][some])
    assert value == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(RecipeError, match=r"kd: labels are by head \(a, b\); give the objective a `head`"):
        build(KD(on="labelled"), s, {"t": s}, b)


def test_what_cannot_work_is_refused_with_both_shapes():
    with pytest.raises(RecipeError, match=r"student logits \[6, 4\] and teacher logits \[6, 5\]"):
        build(KD(), outputs_of(15), {"t": outputs_of(16, classes=5)})
    numbers = Regression(raw=True, target_mean=(0.0,), target_std=(1.0,))
    b = Batch({"student": torch.zeros(6, 1)}, target=torch.zeros(6, 1))
    with pytest.raises(RecipeError, match=r"cross_entropy reads class ids.*predicts numbers; use task_loss"):
        build(CrossEntropy(), outputs_of(17, classes=1), {}, b, numbers)
    with pytest.raises(RecipeError, match=r"kd compares distributions .* predicts numbers; use regression_kd"):
        build(KD(), outputs_of(17, classes=1), {"t": outputs_of(18, classes=1)}, b, numbers)
    build(LogitMSE() + TaskLoss(), outputs_of(17, classes=1), {"t": outputs_of(18, classes=1)}, b, numbers)
    with pytest.raises(RecipeError, match="on is 'unlabelled', but it needs targets"):
        build(CrossEntropy(on="unlabelled"), outputs_of(19), {})
    with pytest.raises(RecipeError, match=r"0\.0 is no temperature"):
        KD(temperature=Linear(4, 0))
    with pytest.raises(RecipeError, match="reaches 0 or 1, where the loss jumps"):
        JSD(beta=Linear(0, 0.5))
    with pytest.raises(RecipeError, match="gives no feature 'layer3'; did you mean layer2"):
        build(AttentionTransfer(layers={"layer3": "layer2"}), outputs_of(20, layer2=(2, 3, 3)), {"t": outputs_of(21)})


def test_adapters_are_parameters_of_the_criterion_and_learn():
    s = outputs_of(22, a=(3, 4, 4), b=(5, 8), c=(2, 4, 4))
    t = outputs_of(23, a=(6, 4, 4), b=(5, 9), c=(2, 4, 4))
    criterion = build(Hint(layers={"a": "a", "b": "b", "c": "c"}), s, {"t": t})
    assert [each["adapter"] for each in criterion.layers()] == ["regressor 3 to 6", "linear 8 to 9", "none"]
    leaves = [type(module).__name__ for module in criterion.modules() if list(module.parameters(recurse=False))]
    assert leaves == ["Conv2d", "BatchNorm2d", "Linear"]
    assert not criterion.splittable
    assert sum(p.numel() for p in criterion.parameters()) == 3 * 6 + 2 * 6 + 8 * 9 + 9
    optimizer = torch.optim.Adam(criterion.parameters(), lr=0.05)
    first = None
    for _ in range(40):
        loss, _ = criterion(s, {"t": t}, batch(), Clock())
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * first
    again = build(Hint(layers={"a": "a", "b": "b", "c": "c"}), s, {"t": t})
    again.load_state_dict(criterion.state_dict())
    value = criterion(s, {"t": t}, batch(), Clock())[0]
    assert again(s, {"t": t}, batch(), Clock())[0].item() == value.item()
    plain = build(Hint(layers={"b": "b"}), s, {"t": t})
    assert plain.splittable
    with pytest.raises(RecipeError, match=r"student a \[6, 3, 4, 4\] and teacher b \[6, 5, 9\]"):
        build(Hint(layers={"a": "b"}, adapter="none"), s, {"t": t})


def test_standardised_logits_make_scale_and_shift_irrelevant():
    s, t = outputs_of(24), outputs_of(25)
    criterion = build(KD(standardize=True), s, {"t": t})
    value = criterion(s, {"t": t}, batch(), Clock())[0].item()
    moved = Outputs(5 * t.logits + 3)
    assert criterion(s, {"t": moved}, batch(), Clock())[0].item() == pytest.approx(value, rel=1e-5)
    mask = torch.tensor([True, True, False, True, True, True])
    dirty = s.logits.clone()
    dirty[2] = torch.nan
    dirty.requires_grad_()
    criterion(Outputs(dirty, mask=mask), {"t": t}, batch(), Clock())[0].backward()
    assert torch.isfinite(dirty.grad).all()


def test_functional_lists_every_loss_in_order():
    assert sorted(F.__all__) == F.__all__
    assert all(callable(getattr(F, name)) for name in F.__all__)

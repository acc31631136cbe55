"""Refinements of a teacher's answer: loops in NumPy, any term, masks, splits, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.objectives.base import Probe, Sum
from decoct.objectives.criterion import Criterion
from decoct.objectives.cross_entropy import CrossEntropy
from decoct.objectives.dist import DIST
from decoct.objectives.hint import Hint
from decoct.objectives.kd import KD
from decoct.objectives.nst import NST
from decoct.objectives.refine.attention import AttentionWeighting, attention_weights
from decoct.objectives.refine.confidence import ConfidenceFilter, confident
from decoct.objectives.refine.correct import LabelCorrection
from decoct.objectives.refine.entropy import EntropyFilter, normalised_entropy
from decoct.objectives.refine.gradient import GradientWeighting
from decoct.objectives.refine.smooth import TeacherSmoothing, smoothed
from decoct.objectives.rkd import RKDDistance
from decoct.outputs import Batch, Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.training.clock import Clock
from decoct.training.schedules import Linear

TASK = ImageClassification(raw=True, classes=tuple("abcd"))
B, C = 6, 4
LABELLED = torch.tensor([True, True, False, True, False, True])


def outputs_of(seed, scale=1.0):
    drawn = torch.Generator().manual_seed(seed)
    features = {"map": torch.randn(B, 3, 4, 4, generator=drawn, dtype=torch.float64)}
    features["tokens"] = torch.randn(B, 5, 7, generator=drawn, dtype=torch.float64)
    return Outputs(scale * torch.randn(B, C, generator=drawn, dtype=torch.float64), features=features)


def batch(labelled=None, target=None):
    target = torch.tensor([0, 1, 2, 3, 0, 1]) if target is None else target
    if labelled is not None:
        target = torch.where(labelled, target, -100)
    return Batch({"student": torch.zeros(B, 1)}, target, labelled)


def value(objective, student, teacher, b=None, shares=None):
    b = b or batch()
    criterion = Criterion.build(objective, Probe(TASK, b, student, {"t": teacher}, {}))
    return criterion(student, {"t": teacher}, b, Clock(), shares)[0]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(t, s):
    p, q = softmax(t), softmax(s)
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q) if a > 0)


def by_hand(student, teacher, change=lambda i, t: t, weight=lambda i, t: 1.0):
    """Mean over all items of weight · KL with the changed teacher, item by item."""
    s, t = student.logits.numpy(), teacher.logits.numpy()
    return np.mean([weight(i, t[i]) * kl(change(i, t[i]), s[i]) for i in range(B)])


KL = KD(temperature=1.0)


def test_confidence_and_entropy_filters_count_left_out_items_as_zero():
    s, t = outputs_of(0), outputs_of(1, 2.0)
    expected = by_hand(s, t, weight=lambda i, x: float(softmax(x).max() >= 0.6))
    assert 0 < expected < by_hand(s, t)
    assert value(KL.replace(refine=(ConfidenceFilter(at_least=0.6),)), s, t).item() == pytest.approx(expected)

    def entropy(x):
        p = softmax(x)
        return -sum(a * np.log(a) for a in p) / np.log(C)

    expected = by_hand(s, t, weight=lambda i, x: float(entropy(x) <= 0.7))
    assert 0 < expected < by_hand(s, t)
    assert value(KL.replace(refine=(EntropyFilter(at_most=0.7),)), s, t).item() == pytest.approx(expected)
    expected = by_hand(s, t, weight=lambda i, x: (1 - entropy(x)) * (entropy(x) <= 0.7))
    weighed = EntropyFilter(at_most=0.7, weigh=True)
    assert value(KL.replace(refine=(weighed,)), s, t).item() == pytest.approx(expected)


@pytest.mark.parametrize("how", ["swap", "replace", "leave_out"])
@pytest.mark.parametrize("labelled", [None, LABELLED])
def test_correction_where_the_teacher_contradicts_a_trusted_label(how, labelled):
    s, t, b = outputs_of(2), outputs_of(3), batch(labelled)
    target = b.target.numpy()

    def wrong(i, x):
        return target[i] >= 0 and x.argmax() != target[i]

    def change(i, x):
        if not wrong(i, x) or how == "leave_out":
            return x
        if how == "swap":
            x, best = x.copy(), x.argmax()
            x[best], x[target[i]] = x[target[i]], x[best]
            return x
        p = np.full(C, 0.1 / C)
        p[target[i]] += 0.9
        return np.log(p)

    expected = by_hand(s, t, change, lambda i, x: float(not (how == "leave_out" and wrong(i, x))))
    assert expected != pytest.approx(by_hand(s, t))
    assert value(KL.replace(refine=(LabelCorrection(how=how),)), s, t, b).item() == pytest.approx(expected)


def test_a_class_that_the_teacher_lacks_and_a_mixed_target_are_left_alone():
    s, t = outputs_of(4), outputs_of(5)
    t.logits[0] = torch.tensor([-torch.inf, 1.0, 0.0, 0.0])
    s.logits[0, 0] = -torch.inf
    alone = KL.replace(refine=(LabelCorrection(how="swap"),))
    only = batch(torch.tensor([True, False, False, False, False, False]))
    assert value(alone, s, t, only).item() == value(KL, s, t, only).item()
    mixed = torch.full((B, C), 0.25)
    probe = Probe(TASK, batch(), s, {"t": t}, {})
    criterion = Criterion.build(alone, probe)
    b = replace(batch(), target=mixed)
    assert criterion(s, {"t": t}, b, Clock())[0].item() == value(KL, s, t).item()


@given(st.floats(0, 1), st.integers(2, 6))
def test_smoothing_is_a_mean_of_distributions(amount, classes):
    x = torch.from_numpy(np.random.default_rng(classes).normal(size=(3, classes)))
    x[0, 0] = -torch.inf
    p = smoothed(x, amount=amount).exp().numpy()
    for i in range(3):
        possible = np.isfinite(x[i].numpy())
        expected = (1 - amount) * softmax(x[i].numpy()) + amount * possible / possible.sum()
        np.testing.assert_allclose(p[i], expected, atol=1e-12)


def test_smoothing_reaches_the_term():
    s, t = outputs_of(6), outputs_of(7)
    expected = by_hand(s, t, lambda i, x: np.log(0.8 * softmax(x) + 0.2 / C))
    assert value(KL.replace(refine=(TeacherSmoothing(amount=0.2),)), s, t).item() == pytest.approx(expected)


@pytest.mark.parametrize("favour", ["hard", "easy"])
def test_gradient_weights(favour):
    s, t, b = outputs_of(8), outputs_of(9), batch(LABELLED)

    def weight(i, x):
        p = softmax(x)
        if LABELLED[i]:
            norm = np.sqrt(((p - np.eye(C)[b.target[i]]) ** 2).sum() / 2)
        else:
            norm = np.sqrt(sum(p[y] * ((p - np.eye(C)[y]) ** 2).sum() for y in range(C)) / 2)
        return norm if favour == "hard" else 1 - norm

    expected = by_hand(s, t, weight=weight)
    assert value(KL.replace(refine=(GradientWeighting(favour=favour),)), s, t, b).item() == pytest.approx(expected)


def test_attention_weights_positions_of_a_hint():
    s, t = outputs_of(10), outputs_of(11)
    expected, maps = 0.0, t.features["map"].numpy()
    for i in range(B):
        energy = np.abs(maps[i]).mean(0)
        w = 16 * softmax((energy / 0.3).ravel()).reshape(4, 4)
        expected += (w * (s.features["map"][i].numpy() - maps[i]) ** 2).sum() / (B * 3 * 16)
    objective = Hint(layers={"map": "map"}, refine=(AttentionWeighting(temperature=0.3),))
    assert value(objective, s, t).item() == pytest.approx(expected)
    tokens = attention_weights(t.features["tokens"])
    assert tokens.shape == (B, 5, 1)
    torch.testing.assert_close(tokens.mean((1, 2)), torch.ones(B, dtype=torch.float64))


def test_filters_work_on_any_term():
    s, t = outputs_of(12), outputs_of(13, 2.0)
    keep = confident(t.logits, at_least=0.6)
    assert 1 < keep.sum() < B
    part = keep.sum().item() / B
    refine = (ConfidenceFilter(at_least=0.6),)
    found = value(Hint(layers={"map": "map"}, refine=refine), s, t).item()
    expected = (s.features["map"] - t.features["map"])[keep].square().mean().item()
    assert found == pytest.approx(part * expected)
    found = value(RKDDistance(layers={"map": "map"}, refine=refine), s, t).item()
    pairs = F.rkd_distance_loss(s.features["map"][keep], t.features["map"][keep]).item()
    assert found == pytest.approx(part * pairs)
    found = value(DIST(refine=refine), s, t).item()
    assert found == pytest.approx(part * F.dist_loss(s.logits[keep], t.logits[keep]).item())


@pytest.mark.parametrize("objective", [KL, Hint(layers={"map": "map"}), DIST(), RKDDistance(layers={"map": "map"})])
def test_a_batch_that_is_left_out_wholly_gives_zero_and_gradient_zero(objective):
    s, t = outputs_of(14), outputs_of(15)
    leaves = [s.logits.requires_grad_(), s.features["map"].requires_grad_()]
    loss = value(objective.replace(refine=(ConfidenceFilter(at_least=1.0),)), s, t)
    assert loss.item() == 0
    for each in torch.autograd.grad(loss, leaves, allow_unused=True):
        assert each is None or (each == 0).all()


@pytest.mark.parametrize(
    "refine", [ConfidenceFilter(at_least=0.5), EntropyFilter(at_most=0.9, weigh=True), GradientWeighting()]
)
@pytest.mark.parametrize("on", ["all", "labelled", "unlabelled"])
@pytest.mark.parametrize("objective", [KL, Hint(layers={"map": "map"})])
def test_a_split_batch_adds_up(refine, on, objective):
    s, t, b = outputs_of(16), outputs_of(17, 2.0), batch(LABELLED)
    criterion = Criterion.build(objective.replace(refine=(refine,), on=on), Probe(TASK, b, s, {"t": t}, {}))
    whole = criterion(s, {"t": t}, b, Clock())[0].item()
    items, added = criterion.items(b)[objective.label], 0.0
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        piece = Batch({"student": torch.zeros(len(range(B)[part]), 1)}, b.target[part], b.labelled[part])
        sides = [Outputs(x.logits[part], features={k: v[part] for k, v in x.features.items()}) for x in (s, t)]
        share = {objective.label: int(criterion.items(piece)[objective.label]) / int(items)}
        added += criterion(sides[0], {"t": sides[1]}, piece, Clock(), share)[0].item()
    assert whole > 0
    assert added == pytest.approx(whole, rel=1e-9)


def test_positions_with_a_mask():
    drawn = torch.Generator().manual_seed(3)
    logits = [torch.randn(2, 3, C, generator=drawn, dtype=torch.float64) * 2 for _ in range(2)]
    mask = torch.tensor([[True, True, False], [True, False, False]])
    dirty = logits[1].clone()
    dirty[~mask] = torch.nan
    b = Batch({"student": torch.zeros(2, 1)}, torch.zeros(2, dtype=torch.int64))
    s, t = Outputs(logits[0], mask), Outputs(dirty, mask)
    objective = KL.replace(refine=(ConfidenceFilter(at_least=0.5),))
    found = value(objective, s, t, b).item()
    rows = [kl(dirty[i].numpy(), logits[0][i].numpy()) * (softmax(dirty[i].numpy()).max() >= 0.5)
            for i in zip(*np.nonzero(mask.numpy()))]  # fmt: skip
    assert found == pytest.approx(np.mean(rows))


def test_what_the_order_and_a_sum_do():
    s, t = outputs_of(18), outputs_of(19)
    first, second = TeacherSmoothing(amount=0.5), ConfidenceFilter(at_least=0.5)
    one = value(KL.replace(refine=(first, second)), s, t).item()
    other = value(KL.replace(refine=(second, first)), s, t).item()
    assert one != other
    joined = Sum(terms=(KL.replace(refine=(second,)), CrossEntropy()), refine=(first,))
    assert joined.flat()[0].refine == (first, second)
    assert joined.flat()[1].refine == ()


def test_a_scheduled_threshold_is_logged():
    s, t = outputs_of(20), outputs_of(21)
    objective = KL.replace(refine=(ConfidenceFilter(at_least=Linear(0.9, 0.5)),))
    criterion = Criterion.build(objective, Probe(TASK, batch(), s, {"t": t}, {}))
    assert criterion.weights(Clock(progress=0.5)) == {"kd": 1.0, "kd.confidence.at_least": 0.7}


def test_entropy_of_one_possible_class_is_zero():
    x = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    assert normalised_entropy(x).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (DIST(refine=(GradientWeighting(),)), "relates them to each other"),
        (NST(layers={"map": "map"}, refine=(GradientWeighting(),)), "takes no mean over them|mean is over"),
        (KL.replace(refine=(AttentionWeighting(),)), "asks for 0 layers"),
        (Hint(layers={"map": "map", "tokens": "tokens"}, refine=(AttentionWeighting(),)), "asks for 2 layers"),
        (
            Hint(layers={"map": "map"}, refine=(AttentionWeighting(), GradientWeighting())),
            "weigh items of unlike shapes",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_when_it_is_built(objective, words):
    with pytest.raises(RecipeError, match=words):
        value(objective, outputs_of(22), outputs_of(23))


def test_what_is_refused_as_data():
    with pytest.raises(RecipeError, match="cross_entropy listens to none"):
        CrossEntropy(refine=(ConfidenceFilter(),))
    with pytest.raises(RecipeError, match="did you mean confidence"):
        KD.parse({"refine": [{"use": "confidense"}]})
    t = replace(outputs_of(25), distribution=outputs_of(25).logits[:, :3])
    probe = Probe(TASK, batch(), outputs_of(24), {"t": t}, {}, {"t": (0, 1, 2)})
    with pytest.raises(RecipeError, match="does not know all classes"):
        Criterion.build(KL.replace(refine=(LabelCorrection(),)), probe)
    assert "refine" not in KD().plain()
    assert KD.parse(KD(refine=(LabelCorrection(how="replace"),)).plain()).refine[0].how == "replace"

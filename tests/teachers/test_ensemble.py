"""Several teachers as one: weighted means, classes by name, weights from held-out samples, agreement."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.errors import DataError, RecipeError
from decoct.outputs import Batch, Outputs
from decoct.teachers.classes import align, in_full
from decoct.teachers.combining import COMBINED, Member, Once, Setting, agreement, compared, joined_classes
from decoct.teachers.ensemble import Ensemble, mean_logits, mean_probabilities

CLASSES = 5


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) * 2


def member(logits, known=None):
    return Member(lambda batch: Outputs(torch.from_numpy(logits[: len(batch)])), known)


def joined(spec, members, batch, held_out=()):
    return spec.join(members, Setting(CLASSES, lambda: list(held_out)))(batch)


def batch_of(n=6, target=None):
    return Batch({"student": torch.zeros(n, 1)}, target=target)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), teachers=st.integers(1, 4), temperature=st.sampled_from([1.0, 3.0]))
def test_mean_of_probabilities_is_the_weighted_mean(seed, teachers, temperature):
    logits, weights = drawn(seed, teachers, 6, CLASSES), np.random.default_rng(seed).random((6, teachers)) + 0.1
    p = softmax(logits / temperature)
    expected = np.einsum("kbc,bk->bc", p, weights) / weights.sum(1, keepdims=True)
    found = mean_probabilities(torch.from_numpy(logits), torch.from_numpy(weights), temperature=temperature)
    np.testing.assert_allclose(softmax(found.numpy() / temperature), expected, rtol=1e-9)


@pytest.mark.parametrize("weights", ["confidence", "entropy", "equal", "validation", "learned"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_teachers_that_answer_at_positions(weights, average):
    """Each position is answered as if it were a sample; how much each teacher counts is a mean over what is kept."""
    outputs, kept = drawn(3, 2, 6, 4, CLASSES), torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    target = torch.randint(CLASSES, (6, 4), generator=torch.Generator().manual_seed(1))
    target = torch.where(kept, target, -100)
    spec = Ensemble(weights=weights, average=average)
    whole, flat = batch_of(6, target), batch_of(24, target.flatten())
    found = joined(spec, {"a": member(outputs[0]), "b": member(outputs[1])}, whole, [whole])
    rows = {role: member(each.reshape(24, CLASSES)) for role, each in zip("ab", outputs)}
    wanted = joined(spec, rows, flat, [flat])
    torch.testing.assert_close(found.logits.flatten(0, 1), wanted.logits)
    shares = wanted.values["weights"].reshape(6, 4, 2)
    log = compared(Outputs(found.logits), {"a": found, "b": Outputs(), COMBINED: found}, {}, kept)
    assert [log["say.a"].item(), log["say.b"].item()] == pytest.approx(shares[kept].mean(0).tolist())
    assert log["agreement.a"] == 1
    log = compared(Outputs(found.logits), {"a": found, "b": Outputs(), COMBINED: found}, {})
    assert [log["say.a"].item(), log["say.b"].item()] == pytest.approx(shares.mean((0, 1)).tolist())


def test_what_is_logged_of_teachers_is_of_what_counts():
    own, other = torch.eye(3).reshape(1, 3, 3), torch.eye(3).flip(0).reshape(1, 3, 3)
    kept = torch.tensor([[True, True, False]])
    teachers = {"a": Outputs(other), "b": Outputs(other), "far": Outputs(torch.zeros(1, 7, 3)), "none": Outputs()}
    log = compared(Outputs(own), teachers, {}, kept)
    assert {name: each.item() for name, each in log.items()} == {
        "agreement.a": 0.5,
        "agreement.b": 0.5,
        "agreement.teachers": 1.0,
    }
    assert compared(Outputs(), teachers, {}, kept) == {}
    assert compared(Outputs(own), teachers, {}, torch.zeros(1, dtype=torch.bool))["agreement.a"] == 0
    assert compared(Outputs(own), teachers, {})["agreement.a"].item() == pytest.approx(1 / 3)


def test_mean_of_logits():
    logits, weights = drawn(0, 3, 6, CLASSES), np.array([1.0, 2.0, 5.0])
    found = mean_logits(torch.from_numpy(logits), torch.from_numpy(weights))
    np.testing.assert_allclose(found.numpy(), np.einsum("kbc,k->bc", logits, weights) / 8, rtol=1e-12)


def partly(logits, knowns):
    full = np.full_like(logits, -np.inf)
    for k, known in enumerate(knowns):
        full[k][:, known] = logits[k][:, known]
    return full


def test_teachers_of_different_classes_give_the_maximum_of_their_joint_likelihood():
    knowns, weights = [[0, 1, 2], [2, 3, 4], [0, 4]], np.array([1.0, 2.0, 0.5])
    logits = partly(drawn(1, 3, 4, CLASSES), knowns)
    found = softmax(mean_probabilities(torch.from_numpy(logits), torch.from_numpy(weights)).numpy())
    for row in range(4):

        def lost(z, row=row):
            q, total = softmax(z), 0.0
            for k, known in enumerate(knowns):
                p = softmax(logits[k, row, known])
                total -= weights[k] * (p * np.log(q[known] / q[known].sum())).sum()
            return total

        best = scipy.optimize.minimize(lost, np.zeros(CLASSES), tol=1e-12)
        np.testing.assert_allclose(found[row], softmax(best.x), atol=1e-5)


def test_teachers_that_are_parts_of_one_distribution_give_it_back():
    whole, knowns = drawn(2, 1, 6, CLASSES), [[0, 1, 2], [2, 3, 4]]
    logits = partly(np.repeat(whole, 2, 0), knowns)
    found = mean_probabilities(torch.from_numpy(logits), torch.ones(2, dtype=torch.float64))
    np.testing.assert_allclose(softmax(found.numpy()), softmax(whole[0]), atol=1e-9)
    twice = partly(np.repeat(whole, 2, 0), [[0, 1, 2, 3], [1, 2, 3, 4]])
    found = mean_probabilities(torch.from_numpy(twice), torch.ones(2, dtype=torch.float64))
    np.testing.assert_allclose(softmax(found.numpy()), softmax(whole[0]), atol=1e-9)


def test_a_class_that_nobody_knows_stays_out_and_a_single_teacher_is_itself():
    logits = partly(drawn(3, 1, 6, CLASSES), [[1, 3]])
    found = mean_probabilities(torch.from_numpy(logits), torch.ones(1))
    assert torch.isneginf(found[:, [0, 2, 4]]).all()
    np.testing.assert_allclose(found[:, [1, 3]].exp().numpy(), softmax(logits[0][:, [1, 3]]), rtol=1e-6)


def test_float32_logits_are_joined_as_float64_ones():
    """Confident specialists share little probability: their joint distribution hangs on small numbers."""
    logits = partly(drawn(10, 2, 200, 10) * 2, [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9]])
    exact = mean_probabilities(torch.from_numpy(logits), torch.ones(2, dtype=torch.float64)).numpy()
    found = mean_probabilities(torch.from_numpy(logits.astype(np.float32)), torch.ones(2)).numpy()
    np.testing.assert_allclose(softmax(found), softmax(exact), atol=1e-4)
    p = softmax(logits)
    q, w = softmax(exact), 0.5
    reach = np.stack([q[:, :6].sum(1), q[:, 4:].sum(1)])
    expected = (w * p[0] + w * p[1]) / sum(
        w / reach[k][:, None] * np.isin(np.arange(10), known) for k, known in enumerate([range(6), range(4, 10)])
    )
    np.testing.assert_allclose(q, expected, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_unlike_teachers_are_joined_at_any_confidence(scale):
    logits = partly(drawn(9, 3, 50, CLASSES) * scale, [[0, 1, 2], [2, 3, 4], [0, 4]]).astype(np.float32)
    found = mean_probabilities(torch.from_numpy(logits), torch.ones(3))
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found.double().exp().sum(-1).numpy(), 1, atol=1e-5)


def test_weights_by_sample():
    logits = drawn(4, 2, 6, CLASSES).astype(np.float32)
    members = {"a": member(logits[0]), "b": member(logits[1])}
    p = softmax(logits.astype(np.float64))
    weights = {"confidence": p.max(-1).T, "entropy": 1 / -(p * np.log(p)).sum(-1).T}
    for name, expected in weights.items():
        outputs = joined(Ensemble(weights=name), members, batch_of())
        shares = expected / expected.sum(1, keepdims=True)
        np.testing.assert_allclose(outputs.values["weights"].numpy(), shares, rtol=1e-4)
        np.testing.assert_allclose(outputs.logits.exp().numpy(), np.einsum("kbc,bk->bc", p, shares), rtol=1e-4)


def test_weights_by_role_keep_to_their_teachers():
    logits = drawn(5, 2, 6, CLASSES).astype(np.float32)
    spec = Ensemble(weights={"b": 3.0, "a": 1.0})
    outputs = joined(spec, {"a": member(logits[0]), "b": member(logits[1])}, batch_of())
    p = softmax(logits.astype(np.float64))
    np.testing.assert_allclose(outputs.logits.exp().numpy(), 0.25 * p[0] + 0.75 * p[1], rtol=1e-4)


def test_validation_weights_are_accuracies_on_the_classes_that_are_known():
    target = torch.tensor([0, 1, 2, 3, 4, -100])
    right = np.eye(CLASSES)[[0, 1, 0, 0, 0, 0]].astype(np.float32)
    narrow = np.eye(2)[[0, 0, 0, 0, 0, 0]].astype(np.float32)
    members = {"a": member(right), "b": member(narrow, (3, 4))}
    outputs = joined(Ensemble(weights="validation"), members, batch_of(), [batch_of(6, target)])
    assert outputs.values["weights"][0].tolist() == pytest.approx([0.4 / 0.9, 0.5 / 0.9])
    with pytest.raises(DataError, match="no held-out sample has a label that b knows"):
        joined(Ensemble(weights="validation"), members, batch_of(), [batch_of(6, torch.zeros(6, dtype=torch.long))])


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_learned_weights_make_the_held_out_labels_most_likely(average):
    n, rng = 400, np.random.default_rng(6)
    target = rng.integers(0, CLASSES, n)
    logits = rng.normal(size=(3, n, CLASSES)).astype(np.float32)
    logits[np.arange(3)[:, None], np.arange(n), target] += np.array([[2.0], [1.0], [0.0]])
    members = {name: member(each) for name, each in zip("abc", logits)}
    held_out = [batch_of(n, torch.from_numpy(target))]
    outputs = joined(Ensemble(weights="learned", average=average), members, batch_of(), held_out)
    wide = logits.astype(np.float64)

    def lost(w):
        if average == "logits":
            return -np.log(softmax(np.einsum("k,kbc->bc", w, wide))[np.arange(n), target]).mean()
        return -np.log(np.einsum("k,kbc->bc", w, softmax(wide))[np.arange(n), target]).mean()

    sums = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = scipy.optimize.minimize(lost, np.full(3, 1 / 3), bounds=[(1e-9, 1)] * 3, constraints=sums, tol=1e-12)
    found = outputs.values["weights"][0].numpy()
    assert lost(found.astype(np.float64)) <= best.fun + 1e-4
    np.testing.assert_allclose(found, best.x, atol=2e-2)


def test_learned_weights_with_classes_that_are_missing_stay_finite():
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    logits = drawn(7, 2, 6, 3).astype(np.float32)
    members = {"a": member(logits[0], (0, 1, 2)), "b": member(logits[1][:, :2], (1, 2))}
    outputs = joined(Ensemble(weights="learned"), members, batch_of(), [batch_of(6, target)])
    assert torch.isfinite(outputs.values["weights"]).all()
    assert torch.isneginf(outputs.logits[:, 3:]).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weights": {"a": 1.0}}, "give one number for each teacher"),
        ({"weights": {"a": 1.0, "c": 1.0}}, "did you mean|allowed"),
        ({"average": "logits"}, "b does not know all classes; use 'probabilities'"),
    ],
)
def test_what_cannot_be_combined(fields, words):
    logits = drawn(8, 2, 6, CLASSES)
    members = {"a": member(logits[0]), "b": member(logits[1][:, :2], (0, 1))}
    with pytest.raises(RecipeError, match=words):
        joined(Ensemble(**fields), members, batch_of())


def test_weights_must_be_positive_and_numbers_are_averaged_as_they_are():
    with pytest.raises(RecipeError, match="Leave out a teacher"):
        Ensemble(weights={"a": 0.0})
    members = {"a": member(np.ones((6, 1), np.float32)), "b": member(np.zeros((6, 1), np.float32))}
    setting = Setting(1, list, distribution=False)
    with pytest.raises(RecipeError, match="predicts numbers"):
        Ensemble().join(members, setting)
    outputs = Ensemble(average="logits", weights={"a": 3.0, "b": 1.0}).join(members, setting)(batch_of())
    assert outputs.logits.tolist() == [[0.75]] * 6


def test_classes_meet_by_name():
    assert align(["x", "y"], ["x", "y"]) is None
    assert align(["z", "y", "x"], ["x", "y"]).columns == (2, 1)
    some = align(["x", "y"], ["y", "q", "x"])
    assert some.known == (0, 2)
    outputs = some(lambda batch: Outputs(torch.tensor([[1.0, 2.0]])))(batch_of(1))
    assert in_full(outputs.logits, some.known, 3).tolist() == [[2.0, -np.inf, 1.0]]
    with pytest.raises(RecipeError, match="they share x, and two are needed"):
        align(["x", "p"], ["x", "q"])
    assert joined_classes({"a": Member(None, (0, 1)), "b": Member(None, (1, 2))}, 4) == (0, 1, 2)
    assert joined_classes({"a": Member(None, (0, 1)), "b": Member(None)}, 4) is None


def test_agreement_is_among_the_classes_that_a_teacher_knows():
    student = torch.tensor([[5.0, 1.0, 0.0], [0.0, 1.0, 5.0]])
    found = agreement(student, {"a": torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "b": student}, {"a": (1, 2)})
    assert found["agreement.a"].item() == 0.5
    assert found["agreement.b"].item() == 1.0
    assert found["agreement.teachers"].item() == 0.5


def test_a_teacher_heard_twice_answers_once():
    calls = []
    once = Once(lambda batch: calls.append(batch) or Outputs())
    first, second = batch_of(1), batch_of(1)
    for batch in (first, first, second, second, first):
        once(batch)
    assert calls == [first, second, first]


@pytest.mark.parametrize(("sizes", "asked"), [((1024, 1024), 2), ((2047, 1), 2), ((2048,), 1), ((2047, 2), 2)])
def test_learned_weights_ask_for_2048_samples_and_no_more(sizes, asked):
    given = []

    def held_out():
        for size in (*sizes, 4):
            given.append(size)
            yield batch_of(size, torch.zeros(size, dtype=torch.long))

    members = {"a": member(drawn(1, 3000, CLASSES)), "b": member(drawn(2, 3000, CLASSES))}
    Ensemble(weights="learned").join(members, Setting(CLASSES, held_out))
    assert len(given) == asked

import numpy as np
from sklearn.metrics import confusion_matrix, recall_score

from decoct.report.confusion import changes, mistakes, squares
from decoct.report.records import Confusion, ModelRecord


def made(seed: int) -> tuple[np.ndarray, np.ndarray, Confusion]:
    generator = np.random.default_rng(seed)
    truth = np.arange(200) % 4
    answers = np.where(generator.random(200) < 0.8, truth, generator.integers(0, 4, 200))
    matrix = confusion_matrix(truth, answers).tolist()
    return truth, answers, Confusion(labels=list("abcd"), matrix=matrix)


def test_recall_by_class_agrees_with_scikit_learn():
    truth, first, one = made(0)
    _, second, two = made(1)
    found = changes(ModelRecord(name="teacher", confusion=one), ModelRecord(name="student", confusion=two))
    np.testing.assert_allclose([each.teacher for each in found], recall_score(truth, first, average=None))
    np.testing.assert_allclose([each.student for each in found], recall_score(truth, second, average=None))
    assert [each.n for each in found] == [50] * 4


def test_shares_sum_to_one_and_mistakes_are_sorted():
    _, _, confusion = made(2)
    for _, row in squares(confusion):
        assert abs(sum(square.share for square in row) - 1) < 1e-12
    counts = [n for *_, n in mistakes(confusion, 100)]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == sum(map(sum, confusion.matrix)) - sum(confusion.matrix[i][i] for i in range(4))


def test_a_class_without_samples_and_unlike_labels():
    empty = Confusion(labels=["a", "b"], matrix=[[0, 0], [1, 3]])
    found = changes(ModelRecord(name="t", confusion=empty), ModelRecord(name="s", confusion=empty))
    assert found[0].teacher is None
    assert changes(ModelRecord(name="t", confusion=empty), ModelRecord(name="s", confusion=made(0)[2])) == []
    assert not Confusion(labels=["a", "b"], matrix=[[1, 2]]).usable()

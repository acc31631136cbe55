"""Terms over hidden states and their head against the same terms over the logits written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import decoct as dc
from decoct.errors import RecipeError
from decoct.models.heads import run_factored
from decoct.objectives.base import Objective, Probe
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.linear_kd import linear_kd_loss
from decoct.outputs import Batch, Dense, Distribution, Factored, Head, Outputs, TopK
from decoct.training.clock import Clock
from decoct.training.updates import Descent, Engine

Shares = Mapping[str, Tensor | float] | None
CLASSES, WIDTH = 9, 4
TASK = dc.ImageClassification(raw=True, classes=tuple("abcdefghi"))
TEXTS = dc.LanguageModel(raw=True, tokens=CLASSES)
OBJECTIVES: dict[str, Objective] = {
    "kd": dc.KD(temperature=3.0),
    "forward_kl": dc.ForwardKL(),
    "reverse_kl": dc.ReverseKL(temperature=1.5),
    "jsd": dc.JSD(beta=0.3),
    "jsd_top_k": dc.JSD(beta=0.7, top_k=3),
    "skew_kl": dc.SkewKL(alpha=0.2),
    "skew_reverse_kl": dc.SkewReverseKL(),
    "adaptive_kl": dc.AdaptiveKL(temperature=2.0),
    "total_variation": dc.TotalVariation(),
    "cross_entropy": dc.CrossEntropy(),
    "smoothed": dc.CrossEntropy(label_smoothing=0.2),
    "task_loss": dc.TaskLoss(),
}
NEAR = {torch.float64: 1e-10, torch.float32: 1e-6}


class Sides:
    """A student and a teacher over `items`, their hidden states and heads drawn; what learns are leaves."""

    def __init__(self, items: Sequence[int], number: torch.dtype, seed: int, **after: Any) -> None:
        random = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64).to(number)

        self.leaves = [drawn(*items, WIDTH), drawn(CLASSES, WIDTH), drawn(CLASSES)]
        for each in self.leaves:
            each.requires_grad_()
        hidden, weight, bias = self.leaves
        self.student = Factored(hidden, Head(weight, bias, **after))
        self.teacher = Factored(drawn(*items, 2 * WIDTH), Head(drawn(CLASSES, 2 * WIDTH), scale=0.5))
        self.target = torch.randint(CLASSES, tuple(items), generator=random)


def forms(outputs: Factored) -> dict[str, Distribution]:
    logits = outputs.dense().detach()
    few = outputs.top_k(4, temperatures=(1.0, 3.0)).each(Tensor.detach)
    return {"dense": Dense(logits), "factored": outputs, "top_k": few}


def criterion(
    objective: Objective, student: Outputs, teacher: Outputs, batch: Batch, module: nn.Module | None = None
) -> Criterion:
    modules = {} if module is None else {"student": module}
    return Criterion.build(objective, Probe(TASK, batch, student, {"teacher": teacher}, modules))


def compared(
    objective: Objective,
    sides: Sides,
    teacher: Distribution,
    mask: Tensor | None,
    labelled: Tensor | None,
    shares: Shares,
) -> tuple[float, list[float]]:
    """The distance of the total, and of the values and gradients, from those of logits written out."""
    target = sides.target if mask is None else torch.where(mask, sides.target, -100)
    batch = Batch({"student": torch.zeros(len(sides.target), 1)}, target, labelled)
    found = []
    for outputs in (sides.student, Dense(sides.student.dense())):
        plain = isinstance(outputs, Dense) and isinstance(teacher, Factored)
        teacher_outputs = Outputs(Dense(teacher.dense().detach()) if plain else teacher, mask=mask)
        student = Outputs(outputs, mask=mask)
        total, parts = criterion(objective, student, teacher_outputs, batch)(
            student, {"teacher": teacher_outputs}, batch, Clock(), shares
        )
        found.append([total.detach(), *parts.values(), *torch.autograd.grad(total, sides.leaves)])
        assert [each.dtype for each in parts.values()] == [sides.leaves[0].dtype] * len(parts)
    ours, theirs = found
    assert [each.shape for each in ours] == [each.shape for each in theirs]
    pairs = [(a, b) for a, b in zip(ours, theirs) if a.numel()]
    far = [float((a - b).double().abs().max()) / max(1.0, float(b.abs().max())) for a, b in pairs]
    return far[0], far[1:]


@pytest.mark.parametrize("number", NEAR)
@pytest.mark.parametrize("after", [{}, {"scale": 0.5}, {"softcap": 2.0, "scale": 2.0}], ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_term_equals_itself_over_logits(name: str, after: dict[str, float], number: torch.dtype) -> None:
    for seed, items in enumerate([(7,), (2, 5)][: 1 if name == "task_loss" else 2]):
        sides = Sides(items, number, seed, **after)
        teacher_outputs = forms(sides.teacher)
        for form in ("dense", "factored", "top_k") if name in ("kd", "forward_kl") else ("dense", "factored"):
            total, rest = compared(OBJECTIVES[name], sides, teacher_outputs[form], None, None, None)
            assert max(total, *rest) <= NEAR[number], form


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """Terms with weights, shapes, what counts, the teacher's form and how a window is cut."""
    names = draw(st.lists(st.sampled_from(list(OBJECTIVES)), min_size=1, max_size=4, unique=True))
    items = draw(st.sampled_from([(1,), (6,), (2, 3), (3, 4), (0,)]))
    bits = draw(st.lists(st.booleans(), min_size=12, max_size=12))
    count = torch.Size(items).numel()
    weights = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.5]), min_size=4, max_size=4))
    return {
        "names": names,
        "items": items,
        "mask": torch.tensor(bits[:count]).reshape(items) if len(items) > 1 else None,
        "labelled": torch.tensor(bits[: items[0]], dtype=torch.bool)
        if len(items) == 1 and draw(st.booleans())
        else None,
        "weights": weights,
        "teacher": draw(st.sampled_from(["dense", "factored"])),
        "shares": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
        "softcap": draw(st.sampled_from([None, 3.0])),
    }


@settings(deadline=None, max_examples=150)
@given(situations())
def test_any_sum_in_one_sweep_equals_its_terms_over_logits(case: dict[str, Any]) -> None:
    sides = Sides(case["items"], torch.float64, case["seed"], softcap=case["softcap"])
    labelled = case["labelled"]
    if labelled is not None:
        sides.target = torch.where(labelled, sides.target, -100)
    terms = [
        weight * OBJECTIVES[name].replace(name=name, on="labelled" if OBJECTIVES[name].supervised else "all")
        for name, weight in zip(case["names"], case["weights"])
    ]
    if labelled is None:
        terms = [each.replace(on="all") for each in terms]
    if len(case["items"]) > 1 or not case["items"][0]:  # the task has one class a sample, and divides by none
        terms = [each for each in terms if each.use != "task_loss"] or [dc.KD()]
    shares = {each.label: 0.25 * (1 + i) for i, each in enumerate(terms)} if case["shares"] else None
    total, rest = compared(sum(terms), sides, forms(sides.teacher)[case["teacher"]], case["mask"], labelled, shares)
    assert max(total, *rest) <= 1e-10


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made while it is active, and how many products of two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.products = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.bytes = max([self.bytes, *(each.untyped_storage().nbytes() for each in _tensors(found))])
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


def wide(rows: int, classes: int) -> tuple[Outputs, Outputs, Batch]:
    random = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(rows, 3, generator=random), torch.randn(classes, 3, generator=random)
    student = Factored(hidden.requires_grad_(), Head(weight.clone().requires_grad_()))
    target = torch.randint(classes, (rows,), generator=random)
    batch = Batch({"student": torch.zeros(rows, 1)}, target)
    return Outputs(student), Outputs(Factored(hidden.detach(), Head(weight))), batch


def test_the_logits_are_made_once_and_never_all_at_the_same_time() -> None:
    rows, classes = 300, 1000
    student, teacher, batch = wide(rows, classes)
    seen = {}
    for objective in (dc.KD(), dc.KD() + dc.CrossEntropy(), dc.KD() + dc.JSD() + dc.CrossEntropy() + dc.TaskLoss()):
        task = TASK.replace(classes=tuple(map(str, range(classes))))
        made = Criterion.build(objective, Probe(task, batch, student, {"teacher": teacher}, {}))
        with Largest() as found:
            total, _ = made(student, {"teacher": teacher}, batch, Clock())
            total.backward()
        assert found.bytes <= 4 * 128 * classes < 4 * rows * classes
        seen[len(made.labels)] = found.products
    assert seen[1] == seen[2] == seen[4] > 0


def test_a_balancer_looks_at_each_term_by_itself() -> None:
    torch.manual_seed(0)
    body = nn.Linear(3, WIDTH).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    sides = Sides((6,), torch.float64, 2)
    batch = Batch({"student": x}, sides.target)
    teacher_outputs = Outputs(Dense(sides.teacher.dense()))
    for balance in ({"use": "gradnorm"}, {"use": "uncertainty"}, {"use": "loss_ratio"}):
        objective = balanced(balance)
        found = []
        for written in (False, True):
            outputs = replace(sides.student, hidden=body(x))
            student = Outputs(Dense(outputs.dense()) if written else outputs)
            made = criterion(objective, student, teacher_outputs, batch, body).double()
            total, parts = made(student, {"teacher": teacher_outputs}, batch, Clock())
            found.append([total.detach(), *parts.values(), *torch.autograd.grad(total, body.parameters())])
        for one, two in zip(*found):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def balanced(balance: dict[str, str]) -> Objective:
    from decoct.spec import Choice

    terms = [{"use": "kd", "weight": 0.9}, {"use": "cross_entropy", "weight": 0.1}]
    found: Objective = Choice("decoct.objectives").validate({"use": "sum", "terms": terms, "balance": balance})
    return found


class Net(nn.Module):
    """Embedding, two layers, and a head, which may be the embedding's own table."""

    def __init__(self, tied: bool, classes: int = CLASSES, width: int = 6) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(classes, width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes, bias=not tied)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.body(self.embedding(ids)))))


def told(net: nn.Module, factored: bool) -> Callable[[Batch], Outputs]:
    def say(batch: Batch) -> Outputs:
        ids = batch.side("student")
        outputs = run_factored(net, lambda: net(ids), "head") if factored else Outputs(net(ids))
        return replace(outputs, mask=batch.target != -100)

    return say


def texts(rows: int, seed: int, classes: int = CLASSES) -> Batch:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(classes, (rows, 7), generator=random)
    kept = torch.rand(rows, 7, generator=random) < 0.7
    return Batch({"student": ids}, torch.where(kept, ids.roll(1, 1), -100))


def stepped(
    tied: bool, factored: bool, cuts: Sequence[int], precision: str = "no", number: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The gradients of a window and what was logged."""
    torch.manual_seed(0)
    net, teacher = Net(tied).to(number), Net(False).to(number)
    whole = texts(sum(cuts), 4)
    window = [whole.take(rows) for rows in torch.arange(sum(cuts)).split(list(cuts))]
    forward, engine = told(net, factored), Engine("cpu", precision)

    def teacher_outputs(batch: Batch) -> Outputs:
        with torch.no_grad(), engine.autocast():
            return told(teacher, factored)(batch)

    with torch.no_grad(), engine.autocast():
        probe = Probe(TEXTS, window[0], forward(window[0]), {"teacher": teacher_outputs(window[0])}, {})
    made = Criterion.build(0.9 * dc.KD(temperature=2) + 0.1 * dc.CrossEntropy(), probe)
    update = Descent(forward, {"teacher": teacher_outputs}, made, torch.optim.SGD(net.parameters(), lr=0.1), engine)
    logged = update(window, Clock())
    return {**logged, **{name: each.grad for name, each in net.named_parameters()}}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cuts", [(6,), (3, 3), (1, 4, 1)])
def test_a_step_has_the_gradients_of_one_over_logits(tied: bool, cuts: tuple[int, ...]) -> None:
    ours, theirs, whole = (
        stepped(tied, *each, number=torch.float64) for each in ((True, cuts), (False, cuts), (True, (6,)))
    )
    assert ("head.bias" in ours) is not tied
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours[name], whole[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_under_bfloat16_the_loss_is_that_of_the_forward_pass(tied: bool) -> None:
    ours, theirs = (stepped(tied, each, (6,), "bf16") for each in (True, False))
    single = stepped(tied, False, (6,))
    for name in ("loss", "kd", "cross_entropy"):
        assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-6)
        assert ours[name].item() != pytest.approx(single[name].item(), rel=1e-5), "the product was not taken in bf16"
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype == torch.float32
        assert (ours[name] - theirs[name]).norm() <= 0.02 * theirs[name].norm(), name


def test_no_row_counts_and_the_head_has_a_gradient_all_the_same() -> None:
    sides = Sides((2, 3), torch.float32, 0)
    batch = Batch({"student": torch.zeros(2, 1)}, torch.full((2, 3), -100))
    mask = torch.zeros(2, 3, dtype=torch.bool)
    student, teacher = Outputs(sides.student, mask=mask), Outputs(sides.teacher, mask=mask)
    made = criterion(dc.KD() + dc.CrossEntropy(), student, teacher, batch)
    total, parts = made(student, {"teacher": teacher}, batch, Clock())
    assert total.item() == 0
    assert {name: each.item() for name, each in parts.items()} == {"kd": 0, "cross_entropy": 0}
    for each in torch.autograd.grad(total, sides.leaves):
        assert not each.any()


def test_what_stands_in_rows_that_do_not_count_stays_out() -> None:
    sides = Sides((2, 3), torch.float64, 0)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    labelled = torch.tensor([True, False])
    hidden, weight, bias = sides.leaves
    rotten = torch.where(mask.unsqueeze(-1), hidden, torch.nan)
    batch = Batch({"student": torch.zeros(2, 1)}, torch.where(mask & labelled[:, None], sides.target, -7), labelled)
    found = []
    for states in (hidden, rotten):
        student = Outputs(Factored(states, Head(weight, bias)), mask=mask)
        teacher = Outputs(replace(sides.teacher, hidden=torch.where(mask[..., None], sides.teacher.hidden, torch.inf)))
        made = criterion(dc.KD() + dc.CrossEntropy(), student, teacher, batch)
        total, _ = made(student, {"teacher": teacher}, batch, Clock())
        found.append([total.detach(), *torch.autograd.grad(total, sides.leaves)])
    for one, two in zip(*found):
        assert torch.equal(one, two)
    assert not found[0][1][~mask].any()


def test_forms_are_those_that_every_reader_takes() -> None:
    def student(objective: Objective) -> set[str]:
        return set(needs_of(objective, ["teacher"], TEXTS.needs)["student"].forms)

    def teacher(objective: Objective) -> set[str]:
        return set(needs_of(objective, ["teacher"], TEXTS.needs)["teacher"].forms)

    for name, objective in OBJECTIVES.items():
        assert student(objective) == {"dense", "factored"}, name
    assert teacher(dc.KD()) == {"dense", "top_k", "factored"}
    assert teacher(dc.JSD()) == {"dense", "factored"}
    assert teacher(dc.SoftCrossEntropy()) == {"dense", "top_k"}
    assert teacher(dc.CrossEntropy()) == {"dense", "top_k", "factored"}, "nobody reads it"
    assert teacher(dc.KD() + dc.JSD()) == {"dense", "factored"}
    for other in (dc.DKD(), dc.ULD(), dc.CTKD(), dc.ARD(), dc.RSLAD(), dc.KD(standardize=True), dc.SoftCrossEntropy()):
        assert student(dc.CrossEntropy() + other) == {"dense"}, other
    refined = dc.KD(refine=({"use": "confidence"},))
    assert student(refined) == teacher(refined) == {"dense"}
    layered = dc.Hint(layers={"a": "b"})
    assert student(layered + dc.CrossEntropy()) == {"dense", "factored"}
    assert teacher(layered.replace(refine=({"use": "confidence"},))) == {"dense"}


def test_what_does_not_fit_is_refused() -> None:
    sides, other = Sides((4,), torch.float32, 0), Sides((4,), torch.float32, 1)
    batch = Batch({"student": torch.zeros(4, 1)}, torch.tensor([0, 1, 2, CLASSES]))
    student = Outputs(sides.student)
    narrow = Outputs(replace(other.teacher, head=Head(other.teacher.head.weight[:5])))
    with pytest.raises(RecipeError, match=r"kd: student logits \[4, 9\] and teacher logits \[4, 5\]"):
        criterion(dc.KD(), student, narrow, batch)
    made = criterion(dc.KD() + dc.CrossEntropy(), student, Outputs(other.teacher), batch)
    with pytest.raises(RecipeError, match="cross_entropy: target 9 lies outside the 9 classes"):
        made(student, {"teacher": Outputs(other.teacher)}, batch, Clock())
    kd = criterion(dc.KD(), student, Outputs(other.teacher), batch)
    total, _ = kd(student, {"teacher": Outputs(other.teacher)}, batch, Clock())
    with pytest.raises(RecipeError, match="a second derivative is asked for"):
        torch.autograd.grad(total, sides.leaves, create_graph=True)
    bucket = TopK.of(torch.randn(4, CLASSES), 3)
    with pytest.raises(RecipeError, match="jsd: the teacher keeps only the 3 largest of 9 probabilities"):
        criterion(dc.JSD(), student, Outputs(bucket), batch)


def test_shares_that_learn_keep_their_gradient() -> None:
    sides = Sides((4,), torch.float64, 0)
    batch = Batch({"student": torch.zeros(4, 1)}, sides.target)
    student, teacher = Outputs(sides.student), Outputs(sides.teacher)
    made = criterion(dc.KD() + dc.CrossEntropy(), student, teacher, batch)
    share = torch.tensor(0.5, requires_grad=True)
    total, parts = made(student, {"teacher": teacher}, batch, Clock(), {"kd": share, "cross_entropy": 1.0})
    (found,) = torch.autograd.grad(total, share)
    assert found.item() == pytest.approx(parts["kd"].item())


def test_a_sweep_equals_the_function_for_one_divergence() -> None:
    sides = Sides((4, 3), torch.float64, 5)
    batch = Batch({"student": torch.zeros(4, 1)}, sides.target)
    student, teacher = Outputs(sides.student), Outputs(sides.teacher)
    total, _ = criterion(dc.ReverseKL(), student, teacher, batch)(student, {"teacher": teacher}, batch, Clock())
    hidden, weight, bias = sides.leaves
    theirs = sides.teacher
    expected = linear_kd_loss(hidden, Head(weight, bias), theirs.hidden, theirs.head, divergence="reverse_kl")
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)


def test_top_k_of_factored_is_that_of_its_logits() -> None:
    outputs = Sides((3, 5), torch.float64, 3).teacher
    for at_once in (1, 4, 100):
        found, expected = outputs.top_k(3, at_once=at_once, tail="uniform"), TopK.of(outputs.dense(), 3, tail="uniform")
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.log_probs, expected.log_probs)
        torch.testing.assert_close(found.rest, expected.rest)
        assert (found.classes, found.tail, found.shape) == (9, "uniform", (3, 5, 9))

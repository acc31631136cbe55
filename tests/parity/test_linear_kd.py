"""`linear_kd_loss` against the plain functions on the whole logits: values and gradients in float64."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import decoct.functional as F
from decoct.errors import RecipeError
from decoct.functional import Head, Labels
from decoct.outputs import TopK

PLAIN = {
    "forward_kl": [F.forward_kl_loss, {}],
    "reverse_kl": [F.reverse_kl_loss, {}],
    "jsd": [F.jsd_loss, {}, {"beta": 0.0}, {"beta": 0.2}, {"beta": 1e-3}, {"beta": 1.0}, {"beta": 0.3, "top_k": 3}],
    "skew_kl": [F.skew_kl_loss, {}, {"alpha": 0.0}, {"alpha": 0.999}, {"alpha": 1.0}],
    "skew_reverse_kl": [F.skew_reverse_kl_loss, {}, {"alpha": 0.0}, {"alpha": 0.999}, {"alpha": 1.0}],
    "adaptive_kl": [F.adaptive_kl_loss, {}, {"alpha": 0.2}],
    "total_variation": [F.total_variation_loss, {}],
}
CASES = [(name, options) for name, (_, *each) in PLAIN.items() for options in each]
N, V = 7, 11


def drawn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(hidden, head):
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = head.scale * logits
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def leaves(seed, bias, scale=1.0, softcap=None, width=3, tokens=N):
    hidden = drawn(seed, tokens, width).requires_grad_()
    bias = drawn(seed + 1, V).requires_grad_() if bias else None
    return hidden, Head(drawn(seed + 2, V, width).requires_grad_(), bias, scale, softcap)


def gradients(loss, hidden, head):
    wanted = [hidden, head.weight] + ([] if head.bias is None else [head.bias])
    return torch.autograd.grad(loss, wanted)


def same(got, whole, hidden, head, factor=1.0):
    assert got.item() == pytest.approx(whole.item(), abs=1e-11)
    for a, b in zip(gradients(factor * got, hidden, head), gradients(factor * whole, hidden, head), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def hard(logits, labels, mask):
    there = labels.target != labels.ignore_index
    kept = there if mask is None else there & mask
    target = torch.where(there, labels.target, 0)
    return labels.weight * F.cross_entropy(logits, target, label_smoothing=labels.smoothing, mask=kept)


@pytest.mark.parametrize(("divergence", "options"), CASES)
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    softcap=st.sampled_from([None, 1.5]),
    temperature=st.sampled_from([1.0, 2.5]),
    smoothing=st.sampled_from([None, 0.0, 0.1]),
    masked=st.booleans(),
    chunk=st.sampled_from([1, 3, None]),
)
def test_every_divergence_under_every_option(
    divergence, options, seed, bias, scale, softcap, temperature, smoothing, masked, chunk
):
    hidden, head = leaves(seed, bias, scale, softcap)
    teacher, theirs = leaves(seed + 10, not bias, 1.3 * scale, None if softcap is None else 2.0, width=4)
    mask = drawn(seed + 20, N) > -0.3 if masked else None
    labels = None
    if smoothing is not None:
        target = torch.arange(N) * 2 % V
        target[::3] = -7
        labels = Labels(target, weight=0.7, ignore_index=-7, smoothing=smoothing)
    logits = dense(hidden, head)
    whole = PLAIN[divergence][0](logits, dense(teacher, theirs), temperature=temperature, mask=mask, **options)
    given_options = {"divergence": divergence, "temperature": temperature, "mask": mask, "labels": labels, **options}
    parts = F.linear_kd_parts(hidden, head, teacher, theirs, chunk=chunk, **given_options)
    assert parts.divergence.item() == pytest.approx(whole.item(), abs=1e-11)
    if labels is not None:
        extra = hard(logits, labels, mask)
        assert parts.cross_entropy.item() == pytest.approx(extra.item() / labels.weight, abs=1e-11)
        whole = whole + extra
    same(parts.total, whole, hidden, head, factor=3.0)
    with torch.no_grad():
        value = F.linear_kd_loss(hidden, head, teacher, theirs, chunk=chunk, **given_options)
    assert value.item() == pytest.approx(whole.item(), abs=1e-11)
    assert teacher.grad is None
    assert theirs.weight.grad is None


@pytest.mark.parametrize("tail", ["bucket", "uniform", "sample"])
@pytest.mark.parametrize("k", [1, 4, V])
@pytest.mark.parametrize("chunk", [2, None])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_stored_targets(tail, k, chunk, softcap):
    hidden, head = leaves(1, True, 0.7, softcap)
    temperature = 1.0 if tail == "sample" else 2.0
    top = TopK.of(2 * drawn(5, N, V), k, tail=tail, temperatures=(1.0, 2.0), draws=3)
    mask = torch.tensor([True, False, True, True, True, False, True])
    labels = Labels(torch.arange(N))
    logits = dense(hidden, head)
    whole = F.top_k_kl_loss(logits, top, temperature=temperature, mask=mask) + hard(logits, labels, mask)
    options = {"temperature": temperature, "mask": mask, "labels": labels, "chunk": chunk}
    same(F.linear_kd_loss(hidden, head, top, **options), whole, hidden, head)
    with torch.no_grad():
        assert F.linear_kd_loss(hidden, head, top, **options).item() == pytest.approx(whole.item(), abs=1e-11)


def test_logits_that_are_asked_for():
    hidden, head = leaves(1, False)
    teacher = drawn(3, N, V)
    mask = torch.tensor([True, False, True, True, True, False, True])
    kept, asked = teacher[mask], []

    def tell(part):
        asked.append((part.start, part.stop))
        return kept[part]

    got = F.linear_kd_loss(hidden, head, tell, mask=mask, chunk=2, divergence="reverse_kl")
    same(got, F.reverse_kl_loss(dense(hidden, head), teacher, mask=mask), hidden, head)
    assert asked == [(0, 2), (2, 4), (4, 5)]
    with pytest.raises(RecipeError, match=r"logits \[2, 10\] for 2 tokens and 11 classes"):
        F.linear_kd_loss(hidden, head, lambda part: teacher[part, :10], chunk=2)


@pytest.mark.parametrize(("divergence", "options"), CASES)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_padded_columns_add_nothing(divergence, options, softcap):
    hidden, head = leaves(1, True, softcap=softcap)
    teacher, theirs = leaves(11, True, width=4, softcap=softcap)
    labels = Labels(torch.arange(N), smoothing=0.1)

    def padded(each):
        width = each.weight.shape[1]
        bias = torch.cat([each.bias, torch.full((2,), -torch.inf, dtype=torch.float64)])
        return replace(each, weight=torch.cat([each.weight, torch.ones(2, width, dtype=torch.float64)]), bias=bias)

    one = F.linear_kd_loss(hidden, head, teacher, theirs, divergence=divergence, labels=labels, **options)
    wide = padded(head)
    two = F.linear_kd_loss(hidden, wide, teacher, padded(theirs), divergence=divergence, labels=labels, **options)
    same(two, one, hidden, head)


@pytest.mark.parametrize(("divergence", "options"), CASES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_at_equality_and_finite_at_large_logits(divergence, options, scale, dtype):
    hidden, weight = scale * drawn(1, N, 3, dtype=dtype), drawn(2, V, 3, dtype=dtype)
    hidden.requires_grad_()
    loss = F.linear_kd_loss(hidden, weight, hidden.detach(), weight, divergence=divergence, **options)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.abs().max().item() < 1e-5
    other = scale * drawn(3, N, 3, dtype=dtype)
    loss = F.linear_kd_loss(hidden, weight, other, weight, divergence=divergence, **options)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_what_needs_no_gradient_gets_none():
    hidden, head = leaves(1, True)
    teacher, theirs = leaves(11, True)
    both = gradients(F.linear_kd_loss(hidden, head, teacher, theirs), hidden, head)
    frozen = Head(head.weight.detach(), head.bias.detach())
    loss = F.linear_kd_loss(hidden, frozen, teacher, theirs)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], both[0])
    loss = F.linear_kd_loss(hidden.detach(), head, teacher, theirs)
    for a, b in zip(torch.autograd.grad(loss, [head.weight, head.bias]), both[1:], strict=True):
        torch.testing.assert_close(a, b)
    loss = F.linear_kd_loss(hidden.detach(), frozen, teacher, theirs)
    assert not loss.requires_grad


def test_a_head_that_is_also_the_embedding_gets_both_gradients():
    table = drawn(1, V, 3).requires_grad_()
    ids = torch.arange(N) % V
    teacher, theirs = leaves(11, False)
    found = []
    for loss in (
        F.linear_kd_loss(table[ids], table, teacher, theirs, chunk=2),
        F.forward_kl_loss(table[ids] @ table.T, dense(teacher, theirs)),
    ):
        found.append(torch.autograd.grad(loss, table)[0])
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-10)


def test_nothing_kept_and_nothing_labelled():
    hidden, head = leaves(1, True)
    teacher, theirs = leaves(11, True)
    none = torch.zeros(N, dtype=torch.bool)
    labels = Labels(torch.full((N,), -100))
    loss = F.linear_kd_loss(hidden, head, teacher, theirs, mask=none, labels=labels)
    assert loss.item() == 0
    assert all((each == 0).all() for each in gradients(loss, hidden, head))
    parts = F.linear_kd_parts(hidden, head, teacher, theirs, labels=labels)
    assert parts.cross_entropy.item() == 0
    same(parts.total, F.forward_kl_loss(dense(hidden, head), dense(teacher, theirs)), hidden, head)
    empty = F.linear_kd_loss(hidden[:0], head, teacher[:0], theirs)
    assert empty.item() == 0


def test_a_masked_token_may_hold_anything():
    hidden, head = leaves(1, False)
    teacher, theirs = leaves(11, False)
    mask = torch.tensor([True] * 4 + [False] * 3)
    spoilt = torch.where(mask.unsqueeze(1), hidden, torch.nan)
    loss = F.linear_kd_loss(
        spoilt, head, teacher, theirs, mask=mask, labels=Labels(torch.tensor([0, 1, 2, 3, 99, 99, 99]))
    )
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(loss, [hidden, head.weight]))


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 10, 1 << 27])
def test_the_byte_budget_changes_nothing(chunk_bytes):
    hidden, head = leaves(1, True)
    teacher, theirs = leaves(11, True)
    loss = F.linear_kd_loss(hidden, head, teacher, theirs, chunk_bytes=chunk_bytes)
    same(loss, F.forward_kl_loss(dense(hidden, head), dense(teacher, theirs)), hidden, head)


@pytest.mark.parametrize("where", ["autocast", "weights"])
def test_in_bfloat16_products_are_rounded_and_the_loss_is_not(where):
    hidden, weight = drawn(1, 64, 16, dtype=torch.float32), drawn(2, 50, 16, dtype=torch.float32)
    teacher, theirs = drawn(3, 64, 16, dtype=torch.float32), drawn(4, 50, 16, dtype=torch.float32)
    hidden, weight, teacher, theirs = (each.bfloat16().float() for each in (hidden, weight, teacher, theirs))
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    whole = F.forward_kl_loss(exact[0] @ exact[1].T, teacher.double() @ theirs.double().T)
    whole.backward()
    dtype = torch.float32 if where == "autocast" else torch.bfloat16
    own = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
    labels = Labels(torch.arange(64) % 50, weight=1e-9)
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"):
        loss = F.linear_kd_loss(*own, teacher.to(dtype), theirs.to(dtype), chunk=7, labels=labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(whole.item(), rel=0.02)
    assert loss.item() != pytest.approx(whole.item(), rel=1e-6)
    loss.backward()
    for each, right in zip(own, exact, strict=True):
        assert each.grad.dtype == dtype
        assert (each.grad.double() - right.grad).norm() < 0.02 * right.grad.norm()


def test_float64_stays_so_under_autocast():
    hidden, head = leaves(1, False)
    teacher, theirs = leaves(11, False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.linear_kd_loss(hidden, head, teacher, theirs)
    same(loss, F.forward_kl_loss(dense(hidden, head), dense(teacher, theirs)), hidden, head)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_inside_a_compiled_function(backend):
    hidden, head = leaves(1, True)
    teacher, theirs = leaves(11, True)
    labels = Labels(torch.arange(N))

    def step(hidden, weight, bias):
        loss = F.linear_kd_loss(2 * hidden, Head(weight, bias), teacher, theirs, labels=labels, chunk=3)
        return 3 * loss

    sizes = []

    def counted(graph, inputs):
        sizes.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch.compiler.reset()
    compiled = torch.compile(step, backend=counted)
    inputs = (hidden, head.weight, head.bias)
    for _ in range(2):
        same(compiled(*inputs), step(*inputs), hidden, head)
    assert sizes
    assert max(sizes) < 12


def test_backward_passes():
    hidden, head = leaves(1, True)
    teacher, theirs = leaves(11, True)
    loss = F.linear_kd_loss(hidden, head, teacher, theirs)
    once = torch.autograd.grad(2 * loss, hidden, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(4 * loss, hidden)[0], 2 * once)
    loss = F.linear_kd_loss(hidden, head, teacher, theirs)
    with pytest.raises(RecipeError, match="a second derivative is asked for"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_what_it_cannot_do_is_refused():
    h, w = drawn(1, N, 3, dtype=torch.float32), drawn(2, V, 3, dtype=torch.float32)
    top = TopK.of(drawn(3, N, V), 2)
    ids = torch.zeros(N, dtype=torch.long)
    for message, call in {
        "divergence is 'jsd', and the teacher keeps only the 2": lambda: F.linear_kd_loss(h, w, top, divergence="jsd"),
        "has no weight of its own": lambda: F.linear_kd_loss(h, w, top, w),
        "without a weight": lambda: F.linear_kd_loss(h, w, h),
        r"targets \[7, 2\] of 9 classes": lambda: F.linear_kd_loss(h, w, replace(top, classes=9)),
        r"student bias \[3\]": lambda: F.linear_kd_loss(h, Head(w, w[0]), h, w),
        "student scale is 0": lambda: F.linear_kd_loss(h, Head(w, scale=0), h, w),
        "teacher softcap is -1": lambda: F.linear_kd_loss(h, w, h, Head(w, softcap=-1)),
        "chunk is 0": lambda: F.linear_kd_loss(h, w, h, w, chunk=0),
        "chunk_bytes is 0": lambda: F.linear_kd_loss(h, w, h, w, chunk_bytes=0),
        "beta is 2": lambda: F.linear_kd_loss(h, w, h, w, divergence="jsd", beta=2),
        "labels.smoothing is 2": lambda: F.linear_kd_loss(h, w, h, w, labels=Labels(ids, smoothing=2)),
        "labels.weight is 0": lambda: F.linear_kd_loss(h, w, h, w, labels=Labels(ids, weight=0)),
        "target 11 lies outside the 11 classes": lambda: F.linear_kd_loss(h, w, h, w, labels=Labels(ids + 11)),
        r"labels.target \[6\]": lambda: F.linear_kd_loss(h, w, h, w, labels=Labels(ids[1:])),
        "backend is 'trition'; did you mean triton": lambda: F.linear_kd_loss(h, w, h, w, backend="trition"),
        "backend is 'triton', and the tensors are on the CPU": lambda: F.linear_kd_loss(h, w, h, w, backend="triton"),
        "backend is 'triton', and divergence": lambda: F.linear_kd_loss(h, w, h, w, divergence="jsd", backend="triton"),
    }.items():
        with pytest.raises(RecipeError, match=message):
            call()


def test_class_ids_alone_are_labels():
    hidden, head = leaves(1, True)
    teacher, theirs = leaves(11, True)
    ids = torch.arange(N) % V
    ids[2] = -100
    alone = F.linear_kd_parts(hidden, head, teacher, theirs, labels=ids)
    assert isinstance(alone, F.LinearKD)
    whole = F.linear_kd_parts(hidden, head, teacher, theirs, labels=Labels(ids))
    assert alone.cross_entropy.item() > 0
    same(alone.total, whole.total, hidden, head)
    assert torch.equal(alone.cross_entropy, whole.cross_entropy)


def test_what_is_no_tensor_is_refused():
    h, w = drawn(1, N, 3), drawn(2, V, 3)
    ids, own = [0] * N, h.tolist()
    for message, call in {
        r"labels is a list; give a tensor of class ids \[\*B\], or Labels": lambda: F.linear_kd_loss(
            h, w, h, w, labels=ids
        ),
        "labels is a tuple; give": lambda: F.linear_kd_loss(h, w, h, w, labels=(torch.tensor(ids), 0.5)),
        "labels.target is a list; give": lambda: F.linear_kd_loss(h, w, h, w, labels=Labels(ids)),
        r"student_hidden is a list; give a tensor \[\*B, D\]": lambda: F.linear_kd_loss(own, w, h, w),
        "teacher_hidden is a list; give a tensor .* or a function": lambda: F.linear_kd_loss(h, w, own, w),
        "teacher_hidden is a list; give": lambda: F.linear_kd_loss(h, w, own),
        "student_weight is a tuple; give": lambda: F.linear_kd_loss(h, (w, None), h, w),
        "teacher_weight is a list; give": lambda: F.linear_kd_loss(h, w, h, w.tolist()),
        "mask is a list; give": lambda: F.linear_kd_loss(h, w, h, w, mask=[True] * N),
        "chunk is 2 and chunk_bytes 64": lambda: F.linear_kd_loss(h, w, h, w, chunk=2, chunk_bytes=64),
    }.items():
        with pytest.raises(RecipeError, match=message):
            call()


INTERPRETED = """
import itertools, torch
import decoct.functional as F
from decoct.functional import Head, Labels

def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-5)

torch.manual_seed(0)
for v, scale in ((5, 1.0), (700, 1.0), (5000, 1.0), (700, 3000.0)):
    hidden = (scale * torch.randn(6, 4)).requires_grad_()
    weight, bias = torch.randn(v, 4, requires_grad=True), torch.randn(v)
    bias[-2:] = -torch.inf
    head, teacher = Head(weight, bias), (scale * torch.randn(6, 3), Head(torch.randn(v, 3), bias))
    target = torch.tensor([0, 1, -100, 2, 1, 0])
    given = (None, Labels(target, 0.5), Labels(target, smoothing=0.1))
    for temperature, labels in itertools.product((1.0, 2.0), given):
        found = []
        for backend in ("torch", "triton"):
            options = dict(temperature=temperature, labels=labels, chunk=4, backend=backend)
            parts = F.linear_kd_parts(hidden, head, *teacher, **options)
            with torch.no_grad():
                close(F.linear_kd_loss(hidden, head, *teacher, **options), parts.total)
            found.append([*parts, *torch.autograd.grad(parts.total, [hidden, weight])])
        for a, b in zip(*found):
            assert torch.isfinite(b).all()
            close(b / a.abs().max().clamp(min=1), a / a.abs().max().clamp(min=1))
    assert F.linear_kd_loss(hidden, head, hidden.detach(), Head(weight.detach(), bias), backend="triton").item() == 0
"""


def test_the_fused_kernel_says_what_the_plain_path_says():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


class Largest(TorchDispatchMode):
    """Sees the number of elements of the largest tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.untyped_storage().nbytes() // each.element_size())
        return found


@pytest.mark.parametrize(("divergence", "options"), CASES)
def test_never_more_than_a_chunk_of_logits(divergence, options):
    hidden, weight = drawn(1, 64, 4).requires_grad_(), drawn(2, 300, 4).requires_grad_()
    labels = Labels(torch.arange(64), smoothing=0.1)
    with Largest() as seen:
        F.linear_kd_loss(
            hidden, weight, drawn(3, 64, 4), drawn(4, 300, 4), divergence=divergence, labels=labels, chunk=8, **options
        ).backward()
    assert seen.elements <= 8 * 300
    with Largest() as seen:
        F.forward_kl_loss(hidden @ weight.T, drawn(5, 64, 300)).backward()
    assert seen.elements == 64 * 300

"""Tags of words: pieces to words, what counts, loss and scores against oracles; both sides meet; stores; files."""

import json
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from torch import Tensor, nn

import decoct as dc
from decoct.data.base import Dataset, Split
from decoct.data.conll import word_keys
from decoct.data.sources import ordered
from decoct.data.views import seen_of
from decoct.errors import DataError, Diverged, RecipeError
from decoct.models.base import Network
from decoct.models.bilstm import BiLSTM
from decoct.models.given import given_model
from decoct.models.interface import Interface, Port, input_ports
from decoct.models.remote import Remote
from decoct.models.saving import load_model
from decoct.models.transformers import Transformers
from decoct.objectives.kd import KD
from decoct.objectives.task_loss import TaskLoss
from decoct.outputs import DENSE, Batch, Dense, Factored, Head, Needs, Outputs
from decoct.recipe.recipe import Recipe
from decoct.runner.checking import check
from decoct.steps.distill import Distill
from decoct.steps.labelling.answers import Answers, pieces_of
from decoct.steps.train import Train
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.reading import Store
from decoct.tasks.answers.entities import entity_scores
from decoct.tasks.answers.tags import Tags
from decoct.tasks.inputs.tokenizers import Pretrained, WordPiece
from decoct.tasks.inputs.words import first_pieces, in_pieces
from decoct.tasks.token_classification import TokenClassification
from decoct.teachers.remote.opening import asked
from decoct.teachers.remote.over_http import HttpTeacher
from decoct.teachers.remote.server import teaching
from decoct.training.budget import Budget
from label_toys import context, done, label

CLASSES = ("O", "B-a", "I-a", "B-b", "I-b")
NAMES = [
    "Ada",
    "Lovelace",
    "Ulm",
    "Berlin",
    "Bad-Oldesloe",
    "IBM",
    "ran",
    "sat",
    "in",
    "the",
    "unbelievable",
    "!",
]
SHORT: dict[str, Any] = {"budget": Budget(steps=6), "batch_size": 8, "log_every": 1, "select": "last"}


def sentences(rows: int, seed: int = 0, longest: int = 9) -> Split:
    drawn = np.random.default_rng(seed)
    words = [[*drawn.choice(NAMES, drawn.integers(1, longest)), f"w{seed}x{i}"] for i in range(rows)]
    tags = [np.array([NAMES.index(w) % 5 if w in NAMES else 0 for w in each], np.int64) for each in words]
    return Split({"words": [list(map(str, each)) for each in words], "tags": tags}, word_keys(words))


@pytest.fixture(scope="module")
def data() -> Dataset:
    splits = {"train": sentences(48), "validation": sentences(20, 1), "test": sentences(20, 2)}
    return Dataset(splits, "words", CLASSES)


@pytest.fixture(scope="module")
def task(data: Dataset) -> TokenClassification:
    """Two tokenizers: the teacher's has characters alone."""
    open_task = TokenClassification(tokenizer=WordPiece(size=90), teacher_tokenizer=WordPiece(size=60, lowercase=False))
    return open_task.resolve(data)


def net(task: Any, reader: str = "student", seed: int = 0) -> Network:
    torch.manual_seed(seed)
    interface = task.reading(reader).interface
    spec = BiLSTM(embedding=6, hidden=5)
    return Network(spec.build(interface).eval(), spec, interface)


# --- inputs -------------------------------------------------------------------------------------------------------


@given(st.lists(st.text("abcZ!éẞ9", min_size=1, max_size=7), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_sentence_in_pieces_is_its_words_in_pieces(words: list[str]) -> None:
    tokenizer = WordPiece(size=70).resolve(["abc zz é ẞ 99 ! cab bca abcabc"])
    alone = [tokenizer.engine(99).encode(each, add_special_tokens=False).ids for each in words]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = in_pieces(tokenizer, 99, [words])
    assert found.ids.ids.tolist()[1:-1] == [i for ids in alone for i in ids]
    assert found.places.ids.tolist() == [-1, *(at for at, ids in enumerate(alone) for _ in ids), -1]
    assert found.counts.tolist() == [len(words)]


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=4), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_first_pieces_by_hand(pieces: list[list[int]], padding: int) -> None:
    """`pieces[b][w]`: how many word w of sentence b has; padding on the left too."""
    rows = [[-1] * padding + [w for w, n in enumerate(each) for _ in range(n)] for each in pieces]
    length, words = max(1, *map(len, rows)), max(1, *map(len, pieces))
    places = torch.tensor([row + [-1] * (length - len(row)) for row in rows])
    at, there = first_pieces(places, words)
    for b, row in enumerate(rows):
        for w in range(words):
            assert bool(there[b, w]) == (w in row)
            assert int(at[b, w]) == (row.index(w) if w in row else 0)


def test_words_without_a_piece_do_not_count_and_are_counted(data: Dataset) -> None:
    words = [["Ada", "Lovelace", "ran", "in", "Ulm"], ["\u200b", "Ulm"]]
    tags = [np.arange(5), np.array([1, 2])]
    split = Split({"words": words, "tags": tags}, word_keys(words))
    cut = TokenClassification(tokenizer=WordPiece(size=60), max_length=12, teacher_max_length=4, classes=CLASSES)
    cut = cut.resolve(Dataset({"train": data.splits["train"]}, "d", CLASSES))
    with pytest.warns(UserWarning, match=r"of 7 words have no piece and do not count: . of sentences of more than"):
        batch = cut.collate(split, np.arange(2))
    student, teacher = (
        [sorted(set(row) - {-1}) for row in batch.trace[name].places.tolist()] for name in ("student", "teacher")
    )
    assert student[1] == teacher[1] == [1]
    assert len(teacher[0]) < len(student[0]) < 5
    wanted = [[w in teacher[0] for w in range(5)], [False, True, False, False, False]]
    assert cut.answer.kept(batch, "items").tolist() == cut.answer.kept(batch, "labelled").tolist() == wanted
    assert (batch.target != -100).tolist() == wanted
    own = net(cut)
    said = cut.forward(own, batch, DENSE, "student")
    assert said.mask.tolist() == wanted
    assert cut.forward(net(cut, "teacher"), batch, DENSE, "teacher").mask.tolist() == wanted
    assert not said.logits[0, 4].any()  # no piece, no answer


def test_data_without_words_are_refused() -> None:
    split = Split({"text": ["a b"], "label": np.zeros(1, np.int64)}, np.zeros(1, np.uint64))
    with pytest.raises(RecipeError, match="the data have text, label and no words; take data such as"):
        TokenClassification().resolve(Dataset({"train": split}, "t", ("no", "yes")))
    with pytest.raises(ValueError, match="'PER' is no tag; allowed: O, B-TYPE, I-TYPE"):
        TokenClassification(classes=("O", "PER"))


def test_a_byte_level_tokenizer_that_glues_words_is_refused(data: Dataset, tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    for prefix in (False, True):
        engine = library.Tokenizer(library.models.BPE({"<pad>": 0, "a": 1}, [], unk_token="<pad>"))
        engine.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        (tmp_path / "tokenizer.json").write_text(engine.to_str())
        made = TokenClassification(tokenizer=Pretrained(path=tmp_path, padding="<pad>"), classes=CLASSES)
        if prefix:
            assert made.resolve(data).tokenizer.text
        else:
            with pytest.raises(RecipeError, match="set add_prefix_space to true"):
                made.resolve(data)


# --- answers ------------------------------------------------------------------------------------------------------


def batches(task: Any, split: Split, size: int) -> Iterator[Batch]:
    return ordered(split, task.collate, batch_size=size)


@pytest.mark.parametrize("reader", ["student", "teacher"])
def test_a_word_is_answered_by_its_first_piece(task: TokenClassification, data: Dataset, reader: str) -> None:
    batch = task.collate(data.splits["train"], np.arange(7))
    network = net(task, reader)
    with torch.no_grad():
        pieces = network.module(**batch.side(reader))
        said = task.forward(network, batch, DENSE, reader)
    assert said.logits.shape == (7, max(map(len, data.splits["train"].columns["words"][:7])), 5)
    engine = task.inputs(reader).tokenizer.engine(128)
    for b, words in enumerate(data.splits["train"].columns["words"][:7]):
        ids = engine.encode(words, is_pretokenized=True).word_ids
        for w in range(said.logits.shape[1]):
            wanted = pieces[b, ids.index(w)] if w < len(words) else torch.zeros(5)
            assert torch.equal(said.logits[b, w], wanted)
            assert bool(said.mask[b, w]) == (w < len(words))


def test_factored_answers_are_brought_to_words(task: TokenClassification, data: Dataset) -> None:
    batch = task.collate(data.splits["train"], np.arange(4))
    hidden, head = torch.randn(*batch.side("student")["input_ids"].shape, 3), Head(torch.randn(5, 3))
    found = task.answer.outputs(Outputs(Factored(hidden, head)), batch, "student")
    plain = task.answer.outputs(Outputs(Dense(head.logits(hidden))), batch, "student")
    assert isinstance(found.distribution, Factored)
    torch.testing.assert_close(found.logits, plain.logits)


def test_other_shapes_are_refused(task: TokenClassification, data: Dataset) -> None:
    batch = task.collate(data.splits["train"], np.arange(3))
    for logits in (torch.zeros(3, 5), torch.zeros(3, 9, 4)):
        with pytest.raises(RecipeError, match=r"returned logits \[3, .*\]; expected \[batch, length, 5\]"):
            task.answer.outputs(Outputs(Dense(logits)), batch, "student")


def test_loss_is_the_mean_over_labelled_words(task: TokenClassification, data: Dataset) -> None:
    labelled = np.arange(48) % 3 != 0
    split = replace(data.splits["train"], labelled=labelled)
    batch = task.collate(split, np.arange(11))
    logits = torch.randn(*batch.target.shape, 5, dtype=torch.float64, requires_grad=True)
    loss = task.answer.loss(Outputs(Dense(logits)), batch)
    rows = [(b, w) for b in range(11) if labelled[b] for w in range(len(split.columns["words"][b]))]
    log_q = logits.detach().numpy() - np.log(np.exp(logits.detach().numpy()).sum(-1, keepdims=True))
    wanted = -np.mean([log_q[b, w, split.columns["tags"][b][w]] for b, w in rows])
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert int(task.answer.items(batch)) == len(rows)
    loss.backward()
    assert not logits.grad[~task.answer.labelled(batch)].any()
    parts = [batch.take(np.arange(a, b)) for a, b in ((0, 4), (4, 5), (5, 11))]
    losses = [
        task.answer.loss(Outputs(Dense(logits[a:b])), part).item() * int(task.answer.items(part))
        for part, (a, b) in zip(parts, ((0, 4), (4, 5), (5, 11)))
    ]
    assert sum(losses) / len(rows) == pytest.approx(loss.item(), rel=1e-12)


def test_a_split_without_tags_is_unlabelled(task: TokenClassification, data: Dataset) -> None:
    split = data.splits["test"]
    batch = task.collate(Split({"words": split.columns["words"]}, split.keys), np.arange(5))
    assert not batch.labelled.any()
    said = task.forward(net(task), batch, DENSE, "student")
    assert task.answer.loss(said, batch).item() == 0
    assert task.answer.kept(batch, "items").sum() == sum(map(len, split.columns["words"][:5]))
    with pytest.raises(DataError, match="no labelled word"):
        task.score(lambda _: said, [batch])


tagged = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=7), min_size=1, max_size=6
)


@given(tagged, st.sampled_from(["default", "strict"]), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_scores_are_seqevals_whatever_the_batches(rows: list[list[tuple[int, int]]], mode: Any, size: int) -> None:
    answer = Tags(classes=CLASSES, entities=mode)
    tally = answer.tally()
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        longest = max(map(len, part))
        target = torch.tensor([[t for t, _ in row] + [-100] * (longest - len(row)) for row in part])
        answered = torch.tensor([[p for _, p in row] + [3] * (longest - len(row)) for row in part])
        logits = 3.0 * torch.nn.functional.one_hot(answered, 5).double()
        tally.add(Batch({"student": target}, target), Outputs(Dense(logits)))
    found = tally.scores()
    true, predicted = ([[CLASSES[pair[side]] for pair in row] for row in rows] for side in (0, 1))
    how: dict[str, Any] = {"mode": "strict", "scheme": IOB2} if mode == "strict" else {}
    wanted = {
        "f1": f1_score(true, predicted, zero_division=0, **how),
        "precision": precision_score(true, predicted, zero_division=0, **how),
        "recall": recall_score(true, predicted, zero_division=0, **how),
        "token_accuracy": np.mean([t == p for row in rows for t, p in row]),
    }
    assert next(iter(found.quality)) == "f1"
    for name, value in wanted.items():
        assert found.quality[name] == pytest.approx(float(value), abs=1e-12), name
    right = sum(t == p for row in rows for t, p in row)
    count = sum(map(len, rows))
    log = math.log(math.exp(3) + 4)
    assert found.quality["cross_entropy"] == pytest.approx((right * (log - 3) + (count - right) * log) / count)
    assert found.confusion[1].sum() == count
    assert set(found.per_class) <= {"a", "b"}


def test_the_modes_differ_where_a_type_begins_inside() -> None:
    true, predicted = [["B-a", "I-a", "O", "B-b"]], [["I-a", "I-a", "O", "B-b"]]
    assert entity_scores(true, predicted, "default")[0]["f1"] == 1.0
    assert entity_scores(true, predicted, "strict")[0]["f1"] == pytest.approx(2 / 3)
    assert entity_scores(true, predicted, "strict")[1] == {"a": 0.0, "b": 1.0}
    assert TokenClassification().entities == "default"


def test_fidelity_is_over_the_words_that_both_answer(task: TokenClassification, data: Dataset) -> None:
    batch = task.collate(data.splits["test"], np.arange(8))
    drawn = torch.Generator().manual_seed(0)
    shape = (*batch.target.shape, 5)
    said, theirs = (
        Outputs(Dense(torch.randn(shape, generator=drawn, dtype=torch.float64)), mask=task.answer.kept(batch, "items"))
        for _ in range(2)
    )
    theirs.mask[0, 0] = False
    tally = task.answer.tally()
    tally.add(batch, said, theirs)
    found = tally.scores().fidelity
    kept = (said.mask & theirs.mask).numpy()
    q, p = ((e.logits.numpy() - np.log(np.exp(e.logits.numpy()).sum(-1, keepdims=True)))[kept] for e in (said, theirs))
    assert found["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-12)
    assert found["agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    said.logits[1, 0] = torch.nan
    with pytest.raises(Diverged, match="non-finite logits for"):
        task.answer.tally().add(batch, said)


# --- inputs that a loader gives ------------------------------------------------------------------------------------


def test_loaders_mark_positions(task: TokenClassification) -> None:
    raw = TokenClassification(raw=True, classes=CLASSES)
    ids = torch.arange(12).reshape(3, 4)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    tags = torch.tensor([[-100, 1, 2, -100], [-100, -100, -100, -100], [0, -100, 3, -100]])
    batch = raw.from_loader(({"input_ids": ids, "attention_mask": mask}, tags))
    assert batch.labelled.tolist() == [True, False, True]
    said = raw.answer.outputs(Outputs(Dense(torch.zeros(3, 4, 5))), batch, "student")
    assert torch.equal(said.mask, mask.bool())
    assert raw.answer.labelled(batch).sum() == raw.answer.items(batch) == 4
    assert raw.answer.loss(said, batch).item() == pytest.approx(math.log(5))
    alone = raw.from_loader({"input_ids": ids, "attention_mask": mask})
    assert raw.answer.loss(raw.answer.zeros(alone), alone).item() == 0
    with pytest.raises(DataError, match=r"the loader's target holds \[7\]; classes are 0 to 4"):
        raw.from_loader(({"input_ids": ids, "attention_mask": mask}, tags.where(tags != 3, 7)))
    with pytest.raises(RecipeError, match=r"expected ids of tags, int64 \[batch, length\]"):
        raw.from_loader(({"input_ids": ids, "attention_mask": mask}, tags[:, 0]))
    with pytest.raises(RecipeError, match=r"task\.classes: 0 names, the model gives 5 logits at each position"):
        TokenClassification(raw=True).shaped_by(batch, 5)


# --- models -------------------------------------------------------------------------------------------------------


def interface(classes: int = 5) -> Interface:
    out = Port(kind="logits", shape=(None, classes), axes={0: "batch", 1: "length"})
    inputs = input_ports("text", (12,))
    return Interface(kind="text", inputs=inputs, outputs={"logits": out}, vocabulary=20, padding=0)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_bilstm_answers_where_tokens_stand(draw: st.DataObject) -> None:
    """Wherever padding stands, and whatever ids stand under it."""
    torch.manual_seed(1)
    module = BiLSTM(embedding=5, hidden=4, layers=2).build(interface()).eval()
    real = draw.draw(st.lists(st.integers(1, 19), min_size=1, max_size=6))
    places = sorted(draw.draw(st.lists(st.integers(0, 11), min_size=len(real), max_size=len(real), unique=True)))
    ids = torch.tensor([draw.draw(st.lists(st.integers(0, 19), min_size=12, max_size=12))])
    mask = torch.zeros(1, 12, dtype=torch.long)
    ids[0, places], mask[0, places] = torch.tensor(real), 1
    alone = module(input_ids=torch.tensor([real]), attention_mask=torch.ones(1, len(real), dtype=torch.long))
    found = module(input_ids=ids, attention_mask=mask)
    assert found.shape == (1, 12, 5)
    torch.testing.assert_close(found[:, places], alone, rtol=0, atol=1e-6)


def test_bilstm_is_torchs_lstm_and_a_linear_layer() -> None:
    torch.manual_seed(1)
    module = BiLSTM(embedding=5, hidden=4).build(interface()).eval()
    own = nn.LSTM(5, 4, 1, batch_first=True, bidirectional=True)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(own, f"{name}_l0").data.copy_(getattr(module.layer1.forwards, f"{name}_l0"))
        getattr(own, f"{name}_l0_reverse").data.copy_(getattr(module.layer1.backwards, f"{name}_l0"))
    ids = torch.randint(1, 20, (3, 7))
    wanted = module.head(own(module.embedding(ids))[0])
    torch.testing.assert_close(module(input_ids=ids, attention_mask=torch.ones_like(ids)), wanted, rtol=0, atol=1e-6)


def test_transformers_have_a_head_for_tokens() -> None:
    pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    spec = Transformers(config={"model_type": "bert", **size})
    module = spec.build(interface()).eval()
    assert type(module).__name__ == "BertForTokenClassification"
    ids = torch.randint(1, 20, (2, 7))
    assert module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 7, 5)
    with pytest.raises(RecipeError, match="'bart' has no token classifier"):
        Transformers(config={"model_type": "bart"}).build(interface())


# --- stores -------------------------------------------------------------------------------------------------------


class Lookup(nn.Module):
    """Logits of each id by table alone: the same bits in whatever batch it stands."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.table(input_ids)
        return found


def test_a_store_teaches_bit_for_bit_as_the_teacher_does(
    task: TokenClassification, data: Dataset, tmp_path: Path
) -> None:
    cut = task.replace(teacher_max_length=14)  # the last words of long sentences have no piece on this side
    torch.manual_seed(2)
    module = Lookup(cut.inputs("teacher").vocabulary or 0)
    inputs, where = {"teacher": given_model("lookup", module)}, {"given": {"lookup": module}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = done(label(), inputs, tmp_path, data, cut, **where)
        objective = 0.7 * KD(temperature=2.0) + 0.3 * TaskLoss()
        live, kept = (
            done(
                Distill(name=name, objective=objective, **SHORT),
                {"model": BiLSTM(embedding=6, hidden=5), "teacher": teacher},
                tmp_path,
                data,
                cut,
                **where,
            )
            for name, teacher in (("live", inputs["teacher"]), ("kept", stored))
        )
        store = Store.open(stored.folder)
        answers = Answers(label(), inputs, context(tmp_path, data, cut, "again", **where))
        for part in [part for piece in pieces_of(label(), context(tmp_path, data, cut, "x")) for part in piece.parts]:
            batch = answers.batch(part)
            said, found = answers.predict(batch), store.read(seen_of(batch), length=batch.target.shape[1])
            assert torch.equal(found.mask, said.mask)
            assert torch.equal(found.logits, said.logits)
            assert not bool(said.mask.all())
        answers.close()
    assert (live.file("model.safetensors").read_bytes()) == (kept.file("model.safetensors").read_bytes())
    ours, theirs = ([r for r in map(json.loads, (a.folder / "log.jsonl").open()) if "loss" in r] for a in (live, kept))
    assert [each["loss"] for each in ours] == [each["loss"] for each in theirs] != []
    assert store.layout.ragged
    bytes_of_logits = sum(map(len, data.splits["train"].columns["words"])) * 5 * 4
    assert stored.meta["statistics"]["bytes"] < 2.5 * bytes_of_logits + 48 * 40


def test_the_size_of_a_store_is_told_by_words(task: TokenClassification, data: Dataset) -> None:
    rows, size = label().estimate(data, task)
    words = sum(map(len, data.splits["train"].columns["words"]))
    assert rows == 48
    assert words * 5 * 4 < size < words * 5 * 4 + 48 * 64


def test_the_largest_classes_of_each_word_are_kept(task: TokenClassification, data: Dataset, tmp_path: Path) -> None:
    module = Lookup(task.inputs("teacher").vocabulary or 0)
    inputs = {"teacher": given_model("lookup", module)}
    made = done(label(keep=TopKCodec(2)), inputs, tmp_path, data, task, given={"lookup": module})
    step = Distill(name="student", objective=KD(), **SHORT)
    student = done(step, {"model": BiLSTM(embedding=6, hidden=5), "teacher": made}, tmp_path, data, task)
    assert student.kind == "model"


# --- teachers elsewhere -------------------------------------------------------------------------------------------


def test_a_teacher_elsewhere_answers_for_words(task: TokenClassification, data: Dataset, tmp_path: Path) -> None:
    """A process is told where words stand; a server gets ids alone, and its answer is brought to words."""
    step, model = Train(name="t", side="teacher", **SHORT), BiLSTM(embedding=6, hidden=5)
    made = done(step, {"model": model}, tmp_path, data, task)
    reading, network = task.reading("teacher"), load_model(made)
    batch = task.collate(data.splits["train"], np.arange(9)).take(np.array([1, 4, 5]))
    with torch.no_grad():
        wanted = reading.forward(network, batch, Needs())
        sent = reading.forward(network, asked(batch, "teacher"), Needs())
    assert torch.equal(sent.logits, wanted.logits)
    assert torch.equal(sent.mask, wanted.mask)
    with teaching(made.folder, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            with HttpTeacher().open(Remote(url=url), reading, Needs()) as far:
                found = far(batch)
        finally:
            server.shutdown()
            thread.join()
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-6)
    assert torch.equal(found.mask, wanted.mask)


# --- the whole chain ----------------------------------------------------------------------------------------------


def conll(split: Split) -> str:
    rows = zip(split.columns["words"], split.columns["tags"])
    return "\n\n".join("\n".join(f"{w}\t{CLASSES[t]}" for w, t in zip(*row)) for row in rows)


@pytest.fixture
def chain(data: Dataset, tmp_path: Path) -> dict[str, Any]:
    (folder := tmp_path / "data").mkdir()
    for name, split in data.splits.items():
        (folder / f"{name.replace('validation', 'dev')}.conll").write_text(conll(split))
    learn = {"budget": {"steps": 6}, "batch_size": 16, "log_every": 1, "checkpoint_seconds": 1e-6}
    small = {"use": "bilstm", "embedding": 6, "hidden": 5}
    kd = [{"use": "kd", "weight": 0.7, "temperature": 2.0}, {"use": "task_loss", "weight": 0.3}]
    return {
        "task": {
            "use": "token_classification",
            "tokenizer": {"use": "wordpiece", "size": 90},
            "teacher_tokenizer": {"use": "wordpiece", "size": 60, "lowercase": False},
        },
        "data": {"use": "conll", "path": str(folder)},
        "models": {"large": small | {"hidden": 8}, "small": small},
        "steps": [
            {"use": "train", "name": "teacher", "side": "teacher", "inputs": {"model": "large"}, **learn},
            {"use": "train", "name": "other", "side": "teacher", "inputs": {"model": "large"}, **learn},
            {"use": "label", "name": "labels", "inputs": {"teacher": "teacher"}},
            {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "labels"}}
            | {"objective": kd, **learn},
            {"use": "distill", "name": "of_two", "inputs": {"model": "small", "a": "teacher", "b": "other"}}
            | {"objective": [{"use": "kd"}, {"use": "cross_entropy"}], "combine": {"use": "ensemble"}, **learn},
            {"use": "benchmark", "inputs": {"teacher": "teacher", "student": "student"}}
            | {"repeats": 3, "warmup": 1, "seconds": 0.3},
        ],
    }


class Stop(Exception):
    """A run that ends in the middle."""


def test_the_chain_runs_and_goes_on_where_it_stopped(chain: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.parse(chain)
    assert [each.step for each in check(recipe)] == [step.name for step in recipe.steps]
    whole = recipe.run(tmp_path / "whole")
    stopped: set[str] = set()

    def stop(event: Any) -> None:
        name, text = event.get("step"), str(event.get("text", ""))
        if (
            event["event"] == "progress"
            and name in ("teacher", "student")
            and text.startswith("step")
            and name not in stopped
        ):
            stopped.add(name)
            raise Stop

    for _ in range(2):  # once in each of the two steps
        with pytest.raises(Stop):
            recipe.run(tmp_path / "parts", watch=stop)
    again = recipe.run(tmp_path / "parts", watch=stop)
    assert stopped == {"teacher", "student"}
    for name in ("teacher", "student", "of_two"):
        ours, theirs = (run.artifact(name).file("model.safetensors").read_bytes() for run in (whole, again))
        assert ours == theirs, name
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["task"] == {"use": "token_classification", "metric": "f1", "direction": "max", "item": "word"}
    found = {each["name"]: each for each in results["models"]}
    assert set(found["student"]["quality"]) == {"f1", "precision", "recall", "token_accuracy", "cross_entropy"}
    assert 0 <= found["student"]["fidelity"]["agreement"] <= 1
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "of the words of the 20 test samples" in page.replace("\xa0", " ")
    assert "Share of words on which" in page
    kept = chain | {"models": {"small": chain["models"]["small"], "store": {"use": "stored"}}}
    kept["models"]["store"]["path"] = str(whole.artifact("labels").folder)
    kept["steps"] = [{**chain["steps"][3], "inputs": {"model": "small", "teacher": "store"}}]
    assert [each.step for each in check(Recipe.parse(kept))] == ["student"]


def test_a_file_gives_pieces_and_scores_as_its_model(chain: dict[str, Any], tmp_path: Path) -> None:
    chain["steps"] = [chain["steps"][0], {"use": "export", "name": "file", "inputs": {"model": "teacher"}}]
    run = Recipe.parse(chain).run(tmp_path / "run")
    file, model = run.artifact("file"), run.artifact("teacher")
    assert (file.folder / "tokenizer.json").is_file()
    onnx = pytest.importorskip("onnxruntime")
    session = onnx.InferenceSession(str(file.file("model.onnx")))
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("logits", ["batch", "length", 5])]
    task = dc.TokenClassification.parse(file.json("task.json"))
    data = dc.CoNLL(path=chain["data"]["path"]).open()
    network, reading = load_model(model), task.reading("teacher")
    for batch in batches(task, data.splits["test"], 6):
        with torch.no_grad():
            wanted = reading.forward(network, batch, Needs())
        feed = reading.feed(batch)
        found = reading.from_file({"logits": session.run(None, feed)[0]}, batch)
        torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5)
        assert torch.equal(found.mask, wanted.mask)


def test_a_step_on_the_teachers_side_reads_as_the_teacher(
    task: TokenClassification, data: Dataset, tmp_path: Path
) -> None:
    """Its tokenizer, and so its vocabulary, is another one."""
    step, model = Train(name="t", side="teacher", **SHORT), BiLSTM(embedding=6, hidden=5)
    made = done(step, {"model": model}, tmp_path, data, task)
    module = load_model(made).module
    assert len(module.embedding.weight) == task.inputs("teacher").vocabulary != task.inputs("student").vocabulary

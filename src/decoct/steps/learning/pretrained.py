"""Networks that were trained elsewhere: asked in their own ids and pixels, their classes matched by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from decoct.errors import RecipeError
from decoct.models.base import Model, Network
from decoct.models.brought import Brought
from decoct.models.estimator_file import Answers, Columns
from decoct.models.given import fresh
from decoct.models.reordered import choose_outputs
from decoct.tasks.answers.numbers import Numbers
from decoct.tasks.inputs.base import STUDENT, TEACHER
from decoct.tasks.inputs.images import Images
from decoct.tasks.inputs.tables import Tables
from decoct.tasks.inputs.texts import Tokenized
from decoct.tasks.inputs.tokenizers import Pretrained

if TYPE_CHECKING:
    from decoct.tasks.base import Reading, Task

SAME = 1e-3
"""By how much a mean or deviation of pixels may differ from what a network was trained on."""


def network_of(value: Model, task: Task, side: str, given: Mapping[str, Any], *, answers: bool = False) -> Network:
    """The network of a Model Spec for a task, in train mode.

    One that was trained elsewhere keeps its head where that knows the task's classes, its outputs in their order;
    `answers`: it is to answer as it is, and a head drawn afresh will not do. RecipeError where it would read ids of
    another vocabulary than its own or, as it is, pixels that are normalised otherwise.
    """
    if value.reads_rows:
        return _of_rows(value, task, side, given)
    reading = task.reading(side)
    brought = value.brings()
    if brought is None:
        return Network(fresh(value, reading.interface, given), value, reading.interface)
    refuse_other_ids(brought, reading)
    names = reading.names
    if answers and names:
        refuse_other_pixels(brought, reading)
        brought.refuse_untaught(names)
    order = brought.order(names) if names else None
    if order is None:
        return Network(fresh(value, reading.interface, given), value, reading.interface)
    own = task.with_values({}, task.answer.renamed(brought.labels)).reading(side).interface
    module = fresh(value, own, given)
    if order != tuple(range(len(brought.labels))):
        choose_outputs(module, order, own)
    return Network(module, value, reading.interface)


def as_read(value: Any, task: Task) -> Task:
    """The task as a teacher reads it: rows as the data have them, for a model that was fitted on these."""
    rows = isinstance(value, Model) and value.reads_rows
    if not rows or task.inputs(TEACHER).kind != "tabular":
        return task
    inputs = task.inputs(TEACHER)
    assert isinstance(inputs, Tables)
    return task if inputs.raw else task.with_values({"raw": True, "shape": (len(inputs.columns),)}, {})


def _of_rows(value: Model, task: Task, side: str, given: Mapping[str, Any]) -> Network:
    """The network of a model that was fitted on rows, its columns and classes found by name."""
    inputs, brought = task.inputs(side), value.brings()
    if not isinstance(inputs, Tables) or brought is None:
        raise RecipeError(f"{value.use} reads rows of tables, the task {task.use} gives none")
    raw = as_read(value, task)
    interface = raw.reading(side).interface
    module = fresh(value, interface, given)
    places = _places(brought, inputs)
    if places is not None:
        module = Columns(places, module)
    answer = task.answer
    if answer.names:
        brought.refuse_untaught(answer.names)
        order = brought.order(answer.names)
        module = module if order == tuple(range(len(brought.labels))) else Answers(module, order)
    elif isinstance(answer, Numbers):
        module = Answers(module, mean=answer.target_mean, std=answer.target_std)
    return Network(module, value, interface)


def _places(brought: Brought, inputs: Tables) -> list[int] | None:
    """Which of the data's columns a fitted model reads, in its order; None where these are all of them, in order."""
    names = [column.name for column in inputs.columns]
    if not names:
        return None
    known = set(brought.columns) & set(names)
    if not known and brought.width == len(names):
        used, places = inputs.columns, None  # without names, or with made up ones: by their order
    else:
        lost = [name for name in brought.columns if name not in known]
        if lost or not brought.columns:
            told = ", ".join(brought.columns[:8]) or f"{brought.width} columns without names"
            raise RecipeError(
                f"{brought.source} reads {told}; the data have {', '.join(names[:8])}. Give data with the columns that "
                "it was fitted on" + (f" ({', '.join(lost[:5])} are missing)" if lost and known else "")
            )
        places = [names.index(name) for name in brought.columns]
        used = tuple(inputs.columns[place] for place in places)
    texts = [column.name for column in used if column.categories is not None]
    if texts:
        raise RecipeError(
            f"{brought.source} was fitted on numbers, and the columns {', '.join(texts[:5])} hold categories, whose "
            "numbers there only the program that fitted it knows; give data with these columns as it saw them"
        )
    return places


def refuse_other_ids(brought: Brought, reading: Reading) -> None:
    """RecipeError where the ids that a pretrained network would read are not those of its own vocabulary."""
    inputs = reading.inputs
    if not isinstance(inputs, Tokenized) or inputs.raw:
        return
    side = "" if reading.reader == STUDENT else "teacher_"
    tokenizer = inputs.tokenizer
    if brought.folder is None:
        if isinstance(tokenizer, Pretrained):
            return
        raise RecipeError(
            f"{brought.source} is pretrained and has no tokenizer beside it, so its ids are not those of "
            f"{tokenizer.use}, which is made from your texts; put its tokenizer.json there, or name the one that it "
            f"was trained with: task.{side}tokenizer: {{use: pretrained, path: DIR}}"
        )
    own = Pretrained(path=brought.folder).resolve(()).engine(512).get_vocab()
    read = tokenizer.engine(512).get_vocab()
    wrong = [piece for piece, number in read.items() if own.get(piece) != number]
    if wrong:
        example = min(wrong, key=lambda piece: read[piece])
        theirs = f"its id {own[example]}" if example in own else "unknown to it"
        also = "" if side else ", or let it read as the teacher does: teacher_tokenizer, and side: teacher at its step"
        raise RecipeError(
            f"task.{side}tokenizer: {brought.source} was trained on the ids of its own vocabulary of {len(own):,} "
            f"tokens, and would read those of another one ({tokenizer.use}, {len(read):,} tokens): {example!r} is "
            f"{read[example]} there and {theirs}. Give it its own: task.{side}tokenizer: {_where(brought)}{also}"
        )


def refuse_other_pixels(brought: Brought, reading: Reading) -> None:
    """RecipeError where a network that is to answer as it is would see pixels that are normalised otherwise."""
    inputs = reading.inputs
    if not isinstance(inputs, Images) or inputs.raw or brought.mean is None or brought.std is None:
        return
    own = inputs.mean, inputs.std
    wanted = {"mean": _of_channels(brought.mean, own[0]), "std": _of_channels(brought.std, own[1])}
    size = inputs.size or (inputs.shape or (0, 0, 0))[-1]
    if all(_near(each, found) for each, found in zip(wanted.values(), own)) and brought.size in (None, size):
        return
    told = {f"{reading.reader}_{name}" if reading.reader != STUDENT else name: each for name, each in wanted.items()}
    lines = ", ".join(f"task.{name}: [{', '.join(f'{one:g}' for one in each)}]" for name, each in told.items())
    side = "" if reading.reader == STUDENT else "teacher_"
    lines += f", task.{side}size: {brought.size}" if brought.size not in (None, size) else ""
    raise RecipeError(
        f"{brought.source} was trained on pixels that are prepared otherwise than the task prepares them for it "
        f"({size} pixels a side, mean {_told(own[0])}, std {_told(own[1])}); set {lines}"
    )


def _of_channels(values: tuple[float, ...], own: tuple[float, ...] | None) -> tuple[float, ...]:
    return values * len(own) if own and len(values) == 1 else values


def _near(wanted: tuple[float, ...], found: tuple[float, ...] | None) -> bool:
    return found is not None and len(found) == len(wanted) and all(abs(a - b) < SAME for a, b in zip(found, wanted))


def _told(values: tuple[float, ...] | None) -> str:
    return ", ".join(f"{each:.3g}" for each in values or ())


def _where(brought: Brought) -> str:
    """How its tokenizer is named in a recipe."""
    if str(brought.folder) == brought.source:
        return f"{{use: pretrained, path: {brought.source}}}"
    return f"{{use: pretrained, name: {brought.source}}}"

"""The command `decoct`: words to calls, nothing else."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from decoct.artifact import is_full, no_space
from decoct.cli.shell import Stopped, importing, in_front, instead, noting, stopping, traces_printable
from decoct.errors import (
    BudgetMissed,
    DataError,
    DecoctError,
    IntegrityError,
    RecipeError,
    ResourceError,
    in_words,
    printable,
)
from decoct.network import offline as kept_offline
from decoct.threads import choose as choose_threads
from decoct.training import launching


@dataclass
class Session:
    """The global settings of one call."""

    words: Sequence[str] = ()
    json: bool = False
    quiet: bool = False
    offline: bool = False


@dataclass(frozen=True)
class Answer:
    """What a command found: plain data for `--json`, lines or tables for people."""

    record: dict[str, Any]
    shown: Sequence[Any] = ()
    exit_code: int = 0


GLOBAL = "Everywhere: -h, --json (one JSON object), --quiet, --offline, --plugin MODULE."
app = typer.Typer(
    help="Turns a large trained model into a small fast one and proves what it cost.",
    epilog=GLOBAL,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
UsageError: Any = typer.BadParameter.__base__

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as steps.student.budget.epochs=3.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder; runs/RECIPE by default.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Repeat the student's steps under so many seeds.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where it trains; a GPU also as cuda:1.")
]
Track = Annotated[
    list[str] | None, typer.Option("--track", metavar="NAME", help="tensorboard, wandb, mlflow or trackio; repeatable.")
]
SeedsAll = Annotated[bool, typer.Option("--seeds-all", help="Repeat the teacher's steps too.")]


@app.callback()
def everywhere(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object, errors too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    plugin: Annotated[
        list[str] | None, typer.Option("--plugin", metavar="MODULE", help="Let recipes name classes of this package.")
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
) -> None:
    """Options of every command, before or after its name."""
    session = context.ensure_object(Session)
    session.offline = offline
    if plugin:
        from decoct.spec import allow_plugin

        for each in plugin:
            allow_plugin(each.partition(".")[0])


def command(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Registers a command under its function's name, without a trailing underscore."""

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Answer:
        try:
            return function(*args, **options)
        except KeyboardInterrupt as interrupt:  # typer would turn it into a bare exit code
            raise Stopped(interrupt) from None

    return app.command(name=function.__name__.rstrip("_"), epilog=GLOBAL)(called)


@command
def demo(context: typer.Context, out: Out = None, device: Device = None, track: Track = None) -> Answer:
    """Runs the digits recipe from teacher to page, in under 90 s on two cores."""
    return _run(context.obj, "digits", out or Path("runs/demo"), [], device=device, track=track or ())


@command
def init(
    context: typer.Context,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="See decoct list tasks.")] = None,
    from_folder: Annotated[Path | None, typer.Option("--from-folder", metavar="DIR", help="Your own data.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> Answer:
    """Writes a commented recipe, for a task or for the data in a folder."""
    from decoct.artifact import write_whole
    from decoct.cli import scaffold

    text = scaffold.write(task, from_folder)
    if out.exists() and not force:
        raise RecipeError(f"--out {out}: exists already; give another file, or --force")
    write_whole(out, text)
    return Answer({"recipe": str(out)}, [f"{out} is written; next: decoct check {out}, decoct run {out}"])


@command
def distill(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of photos or tables, or one file.")],
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="MODEL", help="A folder, file, run or name.")
    ] = None,
    student: Annotated[str | None, typer.Option("--student", metavar="MODEL", help="As small_mobilenet.")] = None,
    preset: Annotated[str, typer.Option("--preset", metavar="fast|balanced|best", help="How long.")] = "balanced",
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Where the data leave it open.")] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="COLUMN", help="Of a table; else the last.")] = None,
    out: Out = None,
    device: Device = None,
    track: Track = None,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe and run nothing.")] = False,
) -> Answer:
    """Does the whole chain on your own data: teacher, student alone and taught, files, figures, page."""
    from decoct.artifact import write_whole
    from decoct.cli import scaffold

    text = scaffold.write(task, data, scaffold.Wishes(preset, teacher, student, target))
    folder = out or Path("runs") / (data.resolve().name.partition(".")[0] or "data")
    if not folder.name:
        raise RecipeError(f"--out {folder}: has no name; give a folder for the run")
    recipe = folder.with_name(f"{folder.name}.yaml")
    if show:
        return Answer({"recipe": text, "out": str(folder)}, [text.rstrip("\n")])
    if (folder / "results.json").is_file() and recipe.is_file() and recipe.read_text(encoding="utf-8") != text:
        raise RecipeError(f"{recipe} is there and differs; decoct run {recipe} runs it, or give another --out")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_whole(recipe, text)
    if not context.obj.quiet and not context.obj.json:
        for each in scaffold.found(recipe):
            print(each, flush=True)
    return _run(context.obj, str(recipe), folder, [], device=device, track=track or ())


@command
def check(context: typer.Context, recipe: RecipeName, settings: Settings = None) -> Answer:
    """Tests a recipe: its keys and values, its data, and one batch through the shapes of every step."""
    from decoct.cli import scaffold

    with importing():
        from decoct.runner.checking import check_file
    path = scaffold.find(recipe)
    found = check_file(path, settings or [], offline=context.obj.offline)
    lines = [*(f"{each.step}: {each.note}" for each in found), f"{path}: good, {len(found)} steps"]
    return Answer({"recipe": str(path), "good": True, "steps": [each.step for each in found]}, lines)


@command
def plan(
    context: typer.Context,
    recipe: RecipeName,
    settings: Settings = None,
    out: Out = None,
    seeds: Seeds = 1,
    seeds_all: SeedsAll = False,
) -> Answer:
    """Shows the resolved recipe and which steps would run or be skipped; runs nothing."""
    from decoct.cli.display import table

    with importing():
        from decoct.runner import execution as running
    path, loaded = _load(recipe, settings)
    folder = out or Path("runs") / path.stem
    found = running.plan(loaded, folder, seeds=seeds, seeds_all=seeds_all, offline=context.obj.offline)
    before = _times_of(folder) if (folder / "results.json").is_file() else {}
    rows = [
        {
            "step": each.node.step.name,
            "use": each.node.step.use,
            "seed": each.node.seed,
            "will": "skip" if each.skip else "run",
            "why": each.why,
            "last time": f"{wall:.1f} s" if (wall := before.get(each.node.step.name)) else "",
            "estimate": each.estimate,
        }
        for each in found
    ]
    record = {"recipe": loaded.plain(), "out": str(folder), "steps": rows}
    return Answer(record, [loaded.yaml(defaults=True), table(rows)])


@command
def run(
    context: typer.Context,
    recipe: RecipeName,
    settings: Settings = None,
    out: Out = None,
    seeds: Seeds = 1,
    seeds_all: SeedsAll = False,
    device: Device = None,
    track: Track = None,
    nproc: Annotated[int, typer.Option("--nproc", min=1, help="Train in so many processes.")] = 1,
) -> Answer:
    """Runs all steps; unchanged ones are skipped; continues after any interruption."""
    if launching.asked_for(nproc):
        ready = functools.partial(_imported, recipe, settings or [])
        return Answer({}, exit_code=launching.launch(context.obj.words, nproc, main, ready))
    options = {"seeds": seeds, "seeds_all": seeds_all, "device": device, "track": track or ()}
    return _run(context.obj, recipe, out, settings or [], **options)


@command
def apply(
    context: typer.Context,
    step: Annotated[str, typer.Argument(metavar="STEP", help="See decoct list steps.")],
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A step's folder in a run.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the new artifact goes.")],
    settings: Settings = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="For task and data; else the run's own.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", metavar="SPLIT|DIR", help="Of quantize: train, validation, or a folder of data."),
    ] = None,
    device: Device = None,
) -> Answer:
    """Runs one step on a saved artifact."""
    from decoct.cli import scaffold
    from decoct.cli.display import Watcher, table
    from decoct.runner.apply import apply as apply_step
    from decoct.runner.apply import changed

    named = None if recipe is None else scaffold.find(recipe)
    with Watcher(quiet=context.obj.quiet or context.obj.json) as watch:
        made = apply_step(
            step,
            artifact,
            out,
            settings or [],
            recipe=named,
            calibration=calibration,
            offline=context.obj.offline,
            device=device,
            watch=watch,
        )
    record = {"folder": str(made.folder), "kind": made.kind, "scores": dict(made.scores), "meta": dict(made.meta)}
    rows = changed(made, artifact)
    shown = [f"{made.kind} in {made.folder}", *([table(rows)] if rows else [])]
    return Answer({**record, "changed": rows}, shown)


@command
def predict(
    context: typer.Context,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A run, a step's folder, or an ONNX file.")],
    asked: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Photos or a folder; sentences; a .csv.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes are named.")] = 5,
) -> Answer:
    """Asks a model about photos, sentences or rows of a table; exported files without torch."""
    from decoct.api.load import load
    from decoct.serving.predict import BATCH, Refused, asked_for, line, plain

    model = load(artifact)
    try:
        pairs = asked_for(asked, model.kind, model.header)
    except Refused as error:
        raise DataError(str(error)) from None
    record, lines = [], []
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        for (name, _), said in zip(part, model.predict([each for _, each in part], top=top)):
            if context.obj.json:
                record.append({"input": name, **plain(said)})
            else:
                lines.append(f"{name}: {line(said)}")
    return Answer({"model": str(model.path), "answers": record}, lines)


@command
def label(
    context: typer.Context,
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="A step's folder in a run.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The store; one that is there is completed.")],
    settings: Settings = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="For task and data; else the run's own.")] = None,
) -> Answer:
    """Writes what a teacher says about every sample to a soft-label store, once."""
    from decoct.cli import scaffold
    from decoct.cli.display import Watcher
    from decoct.runner.apply import apply as apply_step

    named = None if recipe is None else scaffold.find(recipe)
    with Watcher(quiet=context.obj.quiet or context.obj.json) as watch:
        offline = context.obj.offline
        made = apply_step("label", teacher, out, settings or [], recipe=named, offline=offline, watch=watch)
    record = {"folder": str(made.folder), "kind": made.kind, "scores": dict(made.scores), "meta": dict(made.meta)}
    return Answer(record, [f"{made.folder}: {made.meta['summary']}"])


@command
def teach(
    context: typer.Context,
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="A step's folder in a run.")],
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8700,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
) -> Answer:
    """Lets an artifact answer over HTTP as a teacher until it is interrupted; asks for the token in DECOCT_TOKEN."""
    from decoct.teachers.remote.server import serve

    serve(teacher, host, port, device=device)
    return Answer({"taught": str(teacher)})


@command
def show(
    context: typer.Context,
    recipe: RecipeName,
    settings: Settings = None,
    python: Annotated[bool, typer.Option("--python", help="As Python instead of YAML.")] = False,
) -> Answer:
    """Prints a recipe as resolved YAML, or as Python that makes the same."""
    _, loaded = _load(recipe, settings)
    text = loaded.python() if python else loaded.yaml(defaults=True)
    return Answer({"recipe": loaded.plain(), "python" if python else "yaml": text}, [text.rstrip("\n")])


@command
def list_(
    context: typer.Context,
    what: Annotated[list[str] | None, typer.Argument(metavar="[tasks|objectives|steps|...]")] = None,
) -> Answer:
    """Lists what there is: tasks, data, models, objectives, steps, targets, teachers, schedules, recipes."""
    from decoct.cli import explain, scaffold
    from decoct.cli.display import table

    found = explain.listed(what)
    if "recipes" in found:
        found["recipes"] = {name: scaffold.about(path) for name, path in scaffold.shipped().items()}
    shown: list[Any] = []
    for word, entries in found.items():
        shown += [f"\n{word}", table([{"use": key, "what": line} for key, line in entries.items()])]
    return Answer({**found}, shown)


@command
def explain(
    context: typer.Context, key: Annotated[str, typer.Argument(metavar="KEY", help="As kd or kd.temperature.")]
) -> Answer:
    """Explains one entry, or one setting of it: what it does, type, default, range, paper."""
    from decoct.cli import explain as explaining
    from decoct.cli.display import table, wrapped

    shown: list[Any] = []
    found = explaining.explain(key)
    for entry in found:
        shown += [wrapped(f"{entry.catalogue}.{entry.key}: {entry.summary}")]
        shown += ["", wrapped(entry.about)] if entry.about and "." not in key else []
        for each in entry.settings:
            shown += ["", *(wrapped(line, 4 if count else 0) for count, line in enumerate(each.lines()))]
        for each in entry.settings if "." in key else ():
            shown += [table([{each.name: use, "what": line} for use, line in each.choices.items()])]
        shown += ["", *(wrapped(f"Paper: {paper}") for paper in entry.papers), f"Python: {entry.target}", ""]
    return Answer({"key": key, "entries": [each.record() for each in found]}, shown)


@command
def report(
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page.")] = None,
) -> Answer:
    """Writes the page of one run, or of several runs compared."""
    from decoct.runner.reporting import report as write_report

    written, notes = write_report(folders, out)
    record: dict[str, Any] = {"page": str(written)} | ({"notes": notes} if notes else {})
    return Answer(record, [*notes, f"Page: {written}"])


@command
def verify(
    context: typer.Context, folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run or one artifact.")]
) -> Answer:
    """Checks every file's checksum, the figures against the artifacts, and exported files against their weights."""
    from decoct.runner.verify import verify_run

    found = verify_run(folder, offline=context.obj.offline)
    wrong = [f"{each.artifact}: {line}" for each in found for line in each.wrong]
    if wrong:
        raise IntegrityError("\n".join(wrong))
    told = [(each, f"{each.files} files good" if each.files else "") for each in found]
    lines = [f"{each.artifact}: {'; '.join(filter(None, (good, each.parity, each.note)))}" for each, good in told]
    return Answer({"folder": str(folder), "artifacts": [vars(each) for each in found]}, lines)


@command
def doctor(context: typer.Context) -> Answer:
    """Looks at the environment and says what mends what is wrong."""
    from decoct.cli import doctor as examining
    from decoct.cli.display import table

    found = examining.examine()
    rows = [
        {"": "good" if each.good else "BROKEN" if each.essential else "note", "what": each.name, "found": each.found}
        | {"to mend it": "" if each.good else each.fix}
        for each in found
    ]
    wrong = examining.broken(found)
    record = {"good": not wrong, "findings": [vars(each) for each in found]}
    return Answer(record, [table(rows)], exit_code=ResourceError.exit_code if wrong else 0)


@command
def schema(context: typer.Context) -> Answer:
    """Prints the JSON schema of recipes, for editors."""
    import json

    from decoct.cli.schema import recipe_schema

    found = recipe_schema()
    return Answer(found, [json.dumps(found, indent=1)])


def _load(name: str, settings: Sequence[str] | None) -> tuple[Path, Any]:
    from decoct.cli import scaffold

    with importing():
        from decoct.recipe.recipe import Recipe
    path = scaffold.find(name)
    return path, Recipe.load(path, tuple(settings or ()))


def _imported(name: str, settings: Sequence[str]) -> None:
    """Imports what a run of a recipe needs; what is wrong with the recipe, the run says."""
    with importing():
        from decoct.runner import execution
    execution.load_compiler()
    with contextlib.suppress(DecoctError, OSError):
        _load(name, settings)


def _times_of(run: Path) -> dict[str, float | None]:
    """Seconds that each step of a run took."""
    from decoct.report.records import read_results

    return {each.name: each.wall_s for each in read_results(run).steps}


def _run(session: Session, name: str, out: Path | None, settings: Sequence[str], **options: Any) -> Answer:
    from decoct.cli.display import Watcher, table
    from decoct.report.sentence import sentences
    from decoct.report.table import rows

    path, loaded = _load(name, settings)
    out = out or Path("runs") / path.stem
    with Watcher(quiet=session.quiet or session.json) as watch:
        done = loaded.run(out, offline=session.offline, watch=watch, **options)
    page = done.folder / "report.html"
    figures = rows(done.results, brief=True)
    shown = [*(["", table(figures), ""] if figures else []), *sentences(done.results), f"Page: {page}"]
    record = {"folder": str(done.folder), "page": str(page), "results": dict(done.results)}
    missed = "limits" in done.results and done.kept is None
    return Answer(record, shown, exit_code=BudgetMissed.exit_code if missed else 0)


def call(words: Sequence[str]) -> int:
    """Does what the words say; returns the exit code."""
    words = in_front(words)
    first = os.environ.get("RANK", "0") == "0"
    session = Session(words, json="--json" in words and first, quiet="--quiet" in words or not first)
    redirected = contextlib.redirect_stdout(sys.stderr) if session.json else contextlib.nullcontext()
    if "--version" in words:
        return _answered(session, _version())
    try:
        with redirected, noting(quiet=session.quiet), kept_offline("--offline" in words):
            answer = app(words, prog_name="decoct", standalone_mode=False, obj=session)
    except UsageError as error:
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        said = instead(error.format_message(), [str(each.name) for each in app.registered_commands])
        return _failed(session, DecoctError(said.rstrip(".") + where), 2)
    except DecoctError as error:
        return _failed(session, error, error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        found = no_space(Path(str(error.filename or "."))) if is_full(error) else ResourceError(in_words(error))
        return _failed(session, found, ResourceError.exit_code)
    except (MemoryError, RuntimeError) as error:
        from decoct.memory import lacks_memory, memory_full

        if not lacks_memory(error):
            raise
        return _failed(session, memory_full(error), ResourceError.exit_code)
    return _answered(session, answer) if isinstance(answer, Answer) else int(answer or 0)


def _version() -> Answer:
    from decoct import __version__

    return Answer({"decoct": __version__}, [f"decoct {__version__}"])


def _answered(session: Session, answer: Answer) -> int:
    from decoct.cli.display import print_json, print_shown

    if session.json and answer.record:
        print_json(answer.record)
    elif not session.quiet:
        print_shown(answer.shown)
    return answer.exit_code


def _failed(session: Session, error: DecoctError, code: int) -> int:
    from decoct.cli.display import error_record, print_json

    print(printable(str(error)), file=sys.stderr)
    if session.json:
        print_json(error_record(error, code))
    return code


def main() -> None:
    """The entry point of the command."""
    traces_printable()
    choose_threads()
    try:
        with stopping(), noting(quiet=False):
            launching.end_with_launcher()
            code = call(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:  # of stdout itself, such as a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _failed(Session(), ResourceError(f"what it says cannot be written: {in_words(error)}"), 4)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""fit, the one training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from decoct.data.base import Source
from decoct.errors import DataError, RecipeError
from decoct.training.base import History, ManagedUpdate, Options, Update
from decoct.training.budget import Budget
from decoct.training.guards import Guard, NonFinite
from decoct.training.loop import Run
from decoct.training.signals import Interrupted
from decoct.training.state import State

__all__ = ["Guard", "History", "Interrupted", "ManagedUpdate", "NonFinite", "Options", "State", "Update", "fit"]


def fit(
    update: Update,
    source: Source,
    state: State,
    budget: Budget,
    *,
    work: Path | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    options: Options | None = None,
) -> History:
    """Trains until the budget is used up; the best student weights (by `options.select`) are in the student at the end.

    With a `work` folder it logs to `log.jsonl` and writes checkpoints there; called again after a kill at any instant
    it goes on and ends with the same weights, optimizer and log (times aside). `state["student"]` is what `select`
    keeps. `validate` runs at the end of each epoch, without gradients, all parts in eval mode; modes and random state
    are put back after it.

    A source without length is trained on for steps, samples or seconds, and validated at the ends of its epochs and
    after each fifth of the budget.

    Raises Interrupted after SIGTERM or Ctrl-C when the step is done and saved (with `work`, in the main thread);
    Diverged when the guard's limit of non-finite steps is reached; RecipeError and DataError for wrong settings.
    """
    options = options or Options()
    if options.select is not None and validate is None:
        raise RecipeError(f"select is {options.select} but nothing validates; give validate, or leave select out")
    if options.select is not None and "student" not in state:
        raise RecipeError(f"select needs a part called student in the state; there are {', '.join(state) or 'none'}")
    if source.length == 0:
        raise DataError("the source has no batches; give it samples, or a smaller batch size where the last is dropped")
    run = Run(update, source, state, budget, work, validate, options)
    try:
        return run.run()
    finally:
        run.log.close()

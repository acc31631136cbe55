"""Entities in sequences of tags, scored by seqeval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from decoct.errors import ResourceError

Mode = Literal["default", "strict"]
"""How entities are read from tags, by the names of seqeval's modes."""
Sequences = Sequence[Sequence[str]]
_MEANS = ("micro avg", "macro avg", "weighted avg")


def entity_scores(true: Sequences, predicted: Sequences, mode: Mode) -> tuple[dict[str, float], dict[str, float]]:
    """f1, precision and recall over all entities (micro), and the F1 of each type by name.

    An entity is right where type and both ends agree. "default", as conlleval: an I-TYPE that follows no word of its
    type begins an entity; "strict": only a B-TYPE does (IOB2), and other I-TYPE are none. A share of nothing is 0.

    >>> entity_scores([["B-a", "I-a"]], [["I-a", "I-a"]], "default")[0]["f1"]
    1.0
    >>> entity_scores([["B-a", "I-a"]], [["I-a", "I-a"]], "strict")[0]["f1"]
    0.0
    """
    library = _seqeval()
    how = {"mode": "strict", "scheme": library.scheme.IOB2} if mode == "strict" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # its macro mean, which is not used, where there are no types
        report: dict[str, Any] = library.metrics.classification_report(
            [list(tags) for tags in true], [list(tags) for tags in predicted], output_dict=True, zero_division=0, **how
        )
    every = report["micro avg"]
    scores = {"f1": float(every["f1-score"]), "precision": float(every["precision"]), "recall": float(every["recall"])}
    return scores, {name: float(report[name]["f1-score"]) for name in sorted(report) if name not in _MEANS}


def _seqeval() -> Any:
    try:
        import seqeval.metrics
        import seqeval.scheme
    except ImportError:
        raise ResourceError("F1 of entities needs seqeval; pip install 'decoct[nlp]'") from None
    return seqeval

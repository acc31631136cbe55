"""Numbers as people read them: units, significant digits, names of metrics."""

from __future__ import annotations

import math

ABSENT = "–"
MINUS = "−"

_LABELS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "Average precision",
    "rmse": "RMSE",
    "mae": "MAE",
    "mse": "MSE",
    "r2": "R²",
    "ece": "ECE",
    "kl": "KL",
    "nll": "NLL",
    "log_loss": "Log loss",
    "cross_entropy": "Cross-entropy",
    "taylor_cross_entropy": "Taylor cross-entropy",
    "agreement": "Agreement",
    "perplexity": "Perplexity",
    "miou": "Mean IoU",
    "pixel_accuracy": "Pixel accuracy",
    "map": "mAP",
    "map50": "mAP at IoU 0.5",
    "map75": "mAP at IoU 0.75",
    "map_to_teacher": "mAP",
}
_PERCENT = {
    "accuracy",
    "balanced_accuracy",
    "token_accuracy",
    "agreement",
    "f1",
    "precision",
    "recall",
    "top1",
    "top5",
    "ece",
    "miou",
    "pixel_accuracy",
    "map",
    "map50",
    "map75",
    "map_to_teacher",
}
_LESS_IS_BETTER = {
    "rmse",
    "mae",
    "mse",
    "nll",
    "kl",
    "ece",
    "log_loss",
    "cross_entropy",
    "taylor_cross_entropy",
    "perplexity",
    "wer",
    "loss",
}


def label(metric: str) -> str:
    """A metric's name for readers.

    >>> label("rmse"), label("entity_f1")
    ('RMSE', 'Entity f1')
    """
    return _LABELS.get(metric) or metric.replace("_", " ").capitalize()


def is_share(metric: str) -> bool:
    """Whether the metric is a share of 1 that readers expect in percent."""
    return metric in _PERCENT


def less_is_better(metric: str, direction: str = "") -> bool:
    """Whether smaller values of the metric are better; `direction` ("max", "min") decides where it is given."""
    return direction == "min" if direction in {"max", "min"} else metric in _LESS_IS_BETTER


def significant(value: float, digits: int = 3) -> str:
    """At least `digits` significant digits, without an exponent in the usual range.

    >>> significant(0.012345), significant(12.345), significant(12345.6), significant(3e-5), significant(0.0)
    ('0.0123', '12.3', '12,346', '3.00e-05', '0')
    """
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e9:
        text = f"{value:.{digits - 1}e}"
    else:
        decimals = max(digits - 1 - math.floor(math.log10(size)), 0)
        text = f"{value:,.{decimals}f}"
    return text.replace("-", MINUS) if value < 0 and "e" not in text else text


def score(value: float | None, metric: str) -> str:
    """A score with its unit.

    >>> score(0.9812, "token_accuracy"), score(0.4536, "rmse"), score(None, "rmse")
    ('98.1 %', '0.454', '–')
    >>> score(0.99971, "accuracy"), score(1.0, "accuracy")  # not all is never written as all
    ('99.97 %', '100.0 %')
    """
    if value is None:
        return ABSENT
    if not is_share(metric):
        return significant(value)
    digits = 1
    while digits < 6 and 0 < value < 1 and float(f"{100 * value:.{digits}f}") in (0.0, 100.0):
        digits += 1
    return f"{100 * value:.{digits}f} %"


def spread(value: float, metric: str) -> str:
    """A standard deviation or other positive difference of scores, without its unit.

    >>> spread(0.0042, "accuracy"), spread(0.0123, "rmse")
    ('0.4', '0.0123')
    """
    return f"{100 * value:.1f}" if is_share(metric) else significant(value, 2 if abs(value) < 0.01 else 3)


def count(value: float | None) -> str:
    """A large count.

    >>> count(980), count(12_010), count(23_500_000), count(4.1e9)
    ('980', '12.0 k', '23.5 M', '4.10 G')
    """
    if value is None:
        return ABSENT
    return _scaled(value, 1000, ["", "k", "M", "G", "T"])


def size(value: float | None) -> str:
    """A number of bytes, in powers of 1000.

    >>> size(512), size(21_000), size(44_800_000)
    ('512 B', '21.0 kB', '44.8 MB')
    """
    if value is None:
        return ABSENT
    return _scaled(value, 1000, ["B", "kB", "MB", "GB", "TB"])


def milliseconds(value: float | None) -> str:
    """A short time, given in milliseconds.

    >>> milliseconds(0.288), milliseconds(4.2), milliseconds(2300)
    ('288 µs', '4.20 ms', '2.30 s')
    """
    if value is None:
        return ABSENT
    if 0 < value < 1:
        return f"{significant(1000 * value)} µs"
    return f"{significant(value)} ms" if value < 1000 else f"{significant(value / 1000)} s"


def seconds(value: float | None) -> str:
    """A long time, given in seconds.

    >>> seconds(0.004), seconds(12.34), seconds(125), seconds(7325)
    ('4 ms', '12.3 s', '2 min 5 s', '2 h 2 min')
    """
    if value is None:
        return ABSENT
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def times(ratio: float) -> str:
    """How many times, of a ratio of at least 1.

    >>> times(9.31), times(12.04), times(123.4)
    ('9.3', '12', '123')
    """
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def _scaled(value: float, base: int, units: list[str]) -> str:
    power = 0
    while abs(value) >= base * 0.9995 and power < len(units) - 1:
        value, power = value / base, power + 1
    if power == 0:
        return f"{value:.0f} {units[0]}".rstrip()
    return f"{significant(value)} {units[power]}"

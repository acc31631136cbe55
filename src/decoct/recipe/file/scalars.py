"""What plain text stands for: numbers, booleans, nothing, or text."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_DIGITS = 300

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")


def scalar(text: str) -> Any:
    """What plain (unquoted) text stands for; ValueError where it would be read in two ways.

    >>> [scalar(each) for each in ["1e-4", "10", "no", "true", "1:30", "~", "0.1.0"]]
    [0.0001, 10, 'no', True, '1:30', None, '0.1.0']
    """
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if len(text) > MAX_DIGITS and (_INT.match(text) or _FLOAT.match(text)):
        raise ValueError(f"a number of {len(text)} characters; at most {MAX_DIGITS} are read")
    if _INT.match(text):
        return int(text)
    if _LEADING_ZERO.match(text):
        sign = text[0] if text[0] in "+-" else ""
        number = text.lstrip("+-0")
        number = number if number[:1].isdigit() else "0" + number
        raise ValueError(f"{text} begins with 0; write {sign}{number} for the number or '{text}' for the text")
    if _NOT_FINITE.match(text) or (_FLOAT.match(text) and not math.isfinite(float(text))):
        raise ValueError(f"{text} is not a finite number")
    return float(text) if _FLOAT.match(text) else text

"""What a user's loader yields, taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from decoct.errors import RecipeError
from decoct.tasks.inputs.base import READERS

TARGETS = ("target", "label", "labels")


def inputs_and_target(item: Any) -> tuple[dict[str, Any], Any]:
    """Inputs by reader, and the target (None where there is none); RecipeError says what else came."""
    if isinstance(item, Mapping):
        return _from_mapping(item)
    parts: Sequence[Any] = [item] if isinstance(item, Tensor) else item
    if isinstance(parts, list | tuple) and 1 <= len(parts) <= 3:
        if len(parts) == 3:
            return {"student": parts[0], "teacher": parts[1]}, parts[2]
        return dict.fromkeys(READERS, parts[0]), parts[1] if len(parts) == 2 else None
    count = f" of {len(item)}" if isinstance(item, list | tuple) else ""
    raise RecipeError(
        f"the loader yields a {type(item).__name__}{count}; expected (inputs, target), "
        "(student_inputs, teacher_inputs, target), or a mapping with target, label or labels"
    )


def _from_mapping(item: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    names = [name for name in TARGETS if name in item]
    if len(names) > 1:
        raise RecipeError(f"the loader yields both {' and '.join(names)}; keep one as the target")
    rest = {name: value for name, value in item.items() if name not in names}
    target = item[names[0]] if names else None
    if set(rest) == set(READERS):
        return rest, target
    if not rest:
        raise RecipeError(f"the loader yields a mapping with {', '.join(item)} and no inputs")
    alone = next(iter(rest.values())) if len(rest) == 1 and "input_ids" not in rest else rest
    return dict.fromkeys(READERS, alone), target

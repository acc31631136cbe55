"""The shapes that public functions declare: each is declared, and all are checked while the parity tests run."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import decoct.functional as F

ROOT = Path(__file__).parents[2]
MODULES = sorted({inspect.unwrap(getattr(F, name)).__module__ for name in F.__all__})
LOSSES = [
    name
    for name in F.__all__
    if inspect.isfunction(getattr(F, name)) and name not in ("reverse_gradient", "temperature_loss")
]
FREE = {"negatives", "variance", "margin", "temperature"}
"""Arguments that take several shapes, which the function itself checks."""


@pytest.mark.parametrize("name", LOSSES)
def test_every_tensor_has_a_shape(name):
    annotations = inspect.unwrap(getattr(F, name)).__annotations__
    bare = [each for each, kind in annotations.items() if re.fullmatch(r"Tensor( \| None)?", kind)]
    assert set(bare) <= FREE
    assert annotations["return"] != "Tensor"


def checked(*arguments):
    """Runs Python with an import hook that checks the annotated shapes of each function's module."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_the_parity_tests_keep_to_the_shapes():
    hook = f"--jaxtyping-packages={','.join(MODULES)},beartype.beartype"
    files = [str(each) for each in sorted((ROOT / "tests/parity").glob("test_*.py"))]
    options = ["-x", "-k", "not unlike and not refuse and not finite_differences", "-p", "no:cacheprovider"]
    code, text = checked("-m", "pytest", *files, hook, *options)
    assert code == 0, text[-3000:]


def test_a_wrong_shape_is_caught():
    program = f"""
from jaxtyping import TypeCheckError, install_import_hook
with install_import_hook({MODULES!r}, "beartype.beartype"):
    import decoct.functional as F
import torch
x = torch.zeros(2, 3)
F.kd_loss(x, x, mask=torch.ones(2, dtype=torch.bool))
for call in (
    lambda: F.kd_loss(x, torch.zeros(2, 4)),
    lambda: F.kd_loss(x, x, mask=torch.ones(3, dtype=torch.bool)),
    lambda: F.dkd_loss(x, x, torch.zeros(2)),
    lambda: F.hint_loss(x, torch.zeros(2, 3, 1)),
    lambda: F.attention_mse_loss(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)),
):
    try:
        call()
    except TypeCheckError:
        continue
    raise SystemExit("not caught")
"""
    code, text = checked("-c", program)
    assert code == 0, text[-3000:]

"""A step over hidden states and a head in two processes, plain and sharded, is that of one over logits written out."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from process_groups import started

SCRIPT = Path(__file__).with_name("factored_runs.py")


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What one process and the first and the second of two made."""
    folder = tmp_path_factory.mktemp("stepped")
    for processes in (1, 2):
        for code, outputs in started([str(SCRIPT), str(folder / f"{processes}-RANK.safetensors")], processes):
            assert code == 0, outputs
    return {name: load_file(folder / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1")}


def test_factored_equals_dense_in_one_process(stepped: dict[str, dict[str, Tensor]]) -> None:
    found = stepped["1-0"]
    names = [name for name in found if "/factored/" in name]
    assert len(names) > 400
    for name in names:
        assert (found[name] - found[name.replace("/factored/", "/dense/")]).abs().max() <= 1e-12, name


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_two_processes_step_as_one(stepped: dict[str, dict[str, Tensor]], tied: bool, sharded: bool) -> None:
    wanted = {name: each for name, each in stepped["1-0"].items() if f"tied={tied} " in name and "/dense/" in name}
    wanted = {name: each for name, each in wanted.items() if f"sharded={sharded} " in name}
    assert len(wanted) > 100
    for rank in (0,) if sharded else (0, 1):  # the first process alone has whole weights
        for name, expected in wanted.items():
            found = stepped[f"2-{rank}"][name.replace("/dense/", "/factored/")]
            assert (found - expected).abs().max() <= 1e-12, name

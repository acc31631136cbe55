"""Real processes over gloo step as one process does, however the window is cut and padded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from process_groups import started

SCRIPT = Path(__file__).with_name("process_runs.py")
NEAR = {"float64": 1e-9, "float32": 1e-6}


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one process and each of two and of three made."""
    folder = tmp_path_factory.mktemp("stepped")
    for processes in (1, 2, 3):
        for code, text in started([str(SCRIPT), str(folder / f"{processes}-RANK.safetensors")], processes):
            assert code == 0, text
    return folder


@pytest.mark.parametrize("number", NEAR)
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_have_the_gradients_of_one(stepped: Path, processes: int, number: str) -> None:
    whole = load_file(stepped / "1-0.safetensors")
    wanted = {name: each for name, each in whole.items() if f"/{number}/" in name}
    assert len(wanted) > 100
    for rank in range(processes):
        sharded = "sharded/" if rank else "no such name"  # which the first process alone has whole
        part = load_file(stepped / f"{processes}-{rank}.safetensors")
        for name, expected in wanted.items():
            if name.startswith(sharded):
                continue
            scale = float(expected.double().abs().max())
            assert (part[name].double() - expected.double()).abs().max() <= NEAR[number] * max(1.0, scale), name


@pytest.mark.parametrize("number", NEAR)
def test_cuts_of_a_window_have_one_gradient(stepped: Path, number: str) -> None:
    """Without batch normalisation, whose statistics are those of each batch of a window."""
    found = load_file(stepped / "2-0.safetensors")
    wanted = {name: each for name, each in found.items() if f"/whole/{number}/" in name and "convolutions" not in name}
    assert len(wanted) > 20
    for name, expected in wanted.items():
        for cut in ("three", "five"):
            other = found[name.replace("/whole/", f"/{cut}/")]
            assert (other - expected).double().abs().max() <= NEAR[number] * max(1.0, float(expected.abs().max())), name


def test_bfloat16_is_as_near_to_float32_in_two_processes_as_in_one(stepped: Path) -> None:
    errors = []
    for processes in (1, 2):
        found = load_file(stepped / f"{processes}-0.safetensors")
        wanted = [name for name in found if name.startswith("precision/no/") and name.endswith("grad")]
        assert len(wanted) > 5
        whole = torch.cat([found[name].flatten() for name in wanted])
        near = torch.cat([found[name.replace("/no/", "/bf16/")].flatten() for name in wanted])
        errors.append(float((near - whole).norm() / whole.norm()))
    assert 0 < errors[1] < 2 * errors[0] < 0.2


def test_terms_that_relate_samples_are_refused_in_two_processes(stepped: Path) -> None:
    for rank in range(2):
        text = (stepped / f"2-{rank}.refused").read_text()
        assert "accumulate is 1 and processes 2: a term of this objective relates the samples" in text


def test_streams_of_other_lengths_in_each_process_are_refused_in_all(stepped: Path) -> None:
    for rank in range(2):
        text = (stepped / f"2-{rank}.unequal").read_text()
        assert "the number of batches of a window is not the same in the 2 processes" in text


def test_loaders_that_differ_between_processes_are_refused_in_all(stepped: Path) -> None:
    for rank in range(2):
        text = (stepped / f"2-{rank}.differ").read_text()
        assert "the first batch of an epoch of the loader is not the same in the 2 processes" in text

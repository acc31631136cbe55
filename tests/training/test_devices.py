"""Where training runs: what a setting may say, and what is refused where the machine lacks it."""

import pytest
import torch

from decoct.errors import RecipeError, ResourceError
from decoct.training.engine import Engine, found_device
from tiny import PAIR, recipe

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


@pytest.mark.parametrize("word", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:0", "", "cuda:²"])
def test_another_word_is_refused(word):
    with pytest.raises(RecipeError, match=r"allowed: auto, cpu, cuda, a numbered GPU as cuda:1, mps"):
        found_device(word)
    with pytest.raises(RecipeError, match="device"):
        recipe(PAIR, device=word)


def test_auto_is_the_gpu_where_there_is_one():
    assert found_device("auto").type == ("cuda" if GPUS else "cpu")
    assert Engine("cpu").device == torch.device("cpu")


@pytest.mark.skipif(GPUS > 0, reason="there is a GPU")
@pytest.mark.parametrize("word", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_refused(word, tmp_path):
    with pytest.raises(ResourceError, match=rf"device is {word} and torch finds no GPU here; use device: cpu or auto"):
        recipe(PAIR, device=word).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")
def test_an_apple_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ResourceError, match="device is mps and torch finds no Apple GPU here"):
        recipe(PAIR).run(tmp_path / "run", device="mps")


@pytest.mark.skipif(GPUS == 0, reason="there is no GPU")
def test_a_gpu_by_its_number():
    assert found_device("cuda:0") == torch.device("cuda", 0) == Engine("cuda:0").device
    with pytest.raises(ResourceError, match=rf"device is cuda:{GPUS} and torch finds cuda:0"):
        found_device(f"cuda:{GPUS}")


def test_the_setting_holds_and_the_call_beats_it(tmp_path):
    """Neither is in a key: a run goes on elsewhere."""
    run = recipe(PAIR, device="cpu").run(tmp_path / "run")
    assert run.results["device"] == "cpu"
    assert "device: cpu" in (tmp_path / "run/recipe.yaml").read_text()
    again = recipe(PAIR, device="mps").run(tmp_path / "run", device="cpu")
    assert [each["skipped"] for each in again.results["steps"]] == [True] * 3
    assert "device" not in recipe(PAIR).plain()

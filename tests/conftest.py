"""What every test shares: no Hub, few threads, the shared data, and gpu tests that say why they are skipped."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

# Read when huggingface_hub is imported, so they are set before anything imports it. Each process has caches of its
# own: code that travelled with a checkpoint and prepared data sets are written there, and two must not meet.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = HOME = tempfile.mkdtemp(prefix="hf-sllm-tests-")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# Tiny models gain nothing from more threads, and lose much where another process has the cores.
torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and models that lies beside the repository."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (data and models beside the repository), which is absent")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch.cuda.is_available() is False"))


def pytest_collection_finish() -> None:
    """After each training accelerate looks for garbage: not among all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    """Writes a copy of the tiny recipe with some values changed. Its curves are not drawn, to save time."""
    monkeypatch.chdir(ROOT)
    import datasets
    import yaml

    from hf_sllm.training import curves
    from hf_sllm.training.recipe import RECIPES

    monkeypatch.setattr(curves, "draw_curves", lambda rows, path: None)

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(**changes) -> Path:
        values = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
        texts = dict.fromkeys(("train_data", "valid_data"), str(RECIPES / "tiny.jsonl"))
        values.update({**texts, "disable_tqdm": True, "output_dir": str(tmp_path / "run"), **changes})
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return file

    return write

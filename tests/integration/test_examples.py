"""The examples run as they are, offline, and do what they say."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an example in an empty folder; returns its variables."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def call(name: str, *arguments: str) -> dict:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return call


def test_wrap_and_train_learns_and_what_it_loads_is_what_it_saved(run, capsys):
    after = run("wrap_and_train.py")
    losses = [entry["loss"] for entry in after["trainer"].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    ids = after["inputs"].input_ids
    with torch.no_grad():
        torch.testing.assert_close(after["model"](ids).logits, after["trainer"].model.eval()(ids).logits)
    assert "<s>The cat" in capsys.readouterr().out


def test_wrap_and_train_takes_any_language_model(run, shared):
    after = run("wrap_and_train.py", str(shared / "models" / "stories260K"))
    assert after["model"].config.text_config.num_hidden_layers == 5


def test_lora_learns_and_merges(run):
    after = run("lora.py")
    assert after["bits_after"] < after["bits_before"]
    assert after["difference"] < 1e-3
    assert not (Path("runs") / "lora" / "model.safetensors").exists()  # the adapter alone


def test_the_text_is_streamed_whole_and_each_sentence_has_its_latents(run, capsys):
    after = run("write_and_look_inside.py")
    ids, tokenizer = after["ids"][0], after["tokenizer"]
    assert "".join(after["pieces"]) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(after["sentences"]) == tokenizer.decode(ids)
    assert after["vectors"].shape[0] == len(after["sentences"])
    assert "is nearest to" in capsys.readouterr().out

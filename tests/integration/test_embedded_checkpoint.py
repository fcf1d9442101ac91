"""The checkpoint in the package: small, self-contained, above the floor, and written by the command."""

from importlib.resources import files
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.data import load_documents
from hf_sllm.evaluation import bits_per_byte, entropy_floor, needle
from hf_sllm.evaluation.memory import changed_memory, of_newest_sentence

FOLDER = Path(str(files("hf_sllm") / "checkpoints" / "sllm-stories"))


def test_it_is_small_and_its_code_is_the_packages():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 24e6
    assert {file.suffix for file in FOLDER.iterdir()} == {".json", ".safetensors", ".md"}


def test_the_command_writes_sentences_with_it_and_tells_the_speed():
    command = ["generate", "Once upon a time", "--max-sentences", "5", "--seed", "1"]
    one, other = (CliRunner().invoke(app, command) for _ in range(2))
    assert one.exit_code == 0, one.output
    assert one.stdout == other.stdout and one.stdout.startswith("Once upon a time")
    assert one.stdout.count(".") >= 3
    assert "5 sentences" in one.stderr and "tokens per second" in one.stderr


def test_it_scores_above_the_floor_and_far_below_chance(shared):
    """No model can score below the floor. One that uses nothing but how often each byte occurs needs about 4 bits."""
    documents = load_documents(shared / "data" / "stories.valid.jsonl.gz", limit=40)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    found = bits_per_byte(model, tokenizer, documents, progress=False).bits_per_byte
    assert entropy_floor(documents) < found < 1.0


def test_what_the_backbone_predicts_matters(shared):
    """With the predictions of another text in their place, the decoder alone writes each text less well."""
    documents = load_documents(shared / "data" / "stories.valid.jsonl.gz", limit=16)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    own = bits_per_byte(model, tokenizer, documents, progress=False).bits_per_byte
    model.model.latent_output.register_forward_hook(lambda module, inputs, output: output.roll(1, 0))
    assert bits_per_byte(model, tokenizer, documents, progress=False).bits_per_byte > own + 0.01


def test_it_knows_what_was_said_far_beyond_its_decoders_window_by_its_memory(shared):
    documents = load_documents(shared / "data" / "stories.valid.jsonl.gz", limit=40)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)

    def accuracy() -> float:
        return needle(model, tokenizer, documents, model.config, (16,), trials=32, progress=False).accuracy[0]

    assert accuracy() >= 0.9
    with changed_memory(model, of_newest_sentence):
        assert accuracy() <= 0.5

"""The command writes what `generate` returns, and says plainly what is wrong."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import hf_sllm
from hf_sllm import SllmForCausalLM
from hf_sllm.cli import app
from hf_sllm.data import train_tokenizer
from hf_sllm.streaming import SentenceStreamer

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "The owl said"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["The owl said no. The mice ran!", '"Why?" he asked. "Où?"'], 280)


@pytest.fixture(scope="module")
def backbone(tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.5,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def saved(backbone, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sllm")
    SllmForCausalLM.from_backbone(
        backbone, tokenizer, encoder_layers=1, decoder_layers=1, max_sentence_length=16
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_version_is_said():
    assert run("--version").stdout == f"hf-sllm {hf_sllm.__version__}\n"


def test_help_loads_neither_torch_nor_transformers(tmp_path):
    """Away from the repository: its help as a module, its work as the installed script."""
    (tmp_path / "hf-sllm").write_text("from hf_sllm.cli import app\napp()\n")
    run = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "hf_sllm.cli", "--help"], **run)
    assert done.returncode == 0 and "generate" in done.stdout, done.stderr[-2000:]
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "hf_sllm.cli.train" in imported and not {"torch", "transformers", "datasets", "numpy"} & imported
    # What begins to work has the models registered.
    command = [tmp_path / "hf-sllm", "eval", "/nowhere", "--data", "x", "--measures", "bits"]
    done = subprocess.run([sys.executable, *command], **run)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_a_prompt_comes_from_a_pipe(saved):
    options = ["generate", "--model", str(saved), "--greedy", "--max-new-tokens", "20"]
    given = run("generate", PROMPT, *options[1:])
    piped = CliRunner().invoke(app, options, input=PROMPT + "\n")
    assert piped.exit_code == 0 and given.stdout.startswith(PROMPT)
    assert piped.stdout == given.stdout


def test_train_changes_keys_of_a_recipe_and_runs_anywhere(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    changes = ["max_steps=1", "sllm_config.num_latents=3", "sllm_config.latent_size=8", "baseline=false"]
    result = run("train", "tiny", *changes, "disable_tqdm=true", "report_to=none", "save_strategy='no'")
    assert result.exit_code == 0, result.output
    config = AutoConfig.from_pretrained(tmp_path / "runs" / "tiny")
    assert (config.num_latents, config.latent_size, config.decoder_context_length) == (3, 8, 8)
    assert [line["name"] for line in json.loads((tmp_path / "runs" / "tiny" / "results.json").read_text())] == ["SLLM"]


@pytest.mark.parametrize(
    "change, message",
    [
        ("max_step=2", "unknown key 'max_step': did you mean 'max_steps'?"),
        ("max_steps", "'max_steps' changes no key of the recipe: write `key=value`"),
        ("sllm_config..x=2", "changes no key of the recipe"),
        ("max_steps=[1", "the value of 'max_steps=[1' is not YAML"),
        ("sllm_config.num_latent=2", "SllmConfig has no field num_latent"),
    ],
)
def test_a_change_that_cannot_be_is_said_without_a_traceback(change, message, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    result = run("train", "tiny", change, "--output-dir", tmp_path / "run")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert message in result.stderr


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_greedy_text_on_the_screen_is_what_generate_returns(saved, tokenizer, prompt):
    result = run("generate", prompt, "--model", saved, "--greedy", "--max-sentences", 4, "--max-new-tokens", 40)
    assert result.exit_code == 0, result.output
    model = SllmForCausalLM.from_pretrained(saved).eval()
    input_ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt)["input_ids"]]])
    written = model.generate(input_ids, max_sentences=4, max_new_tokens=40, do_sample=False)
    assert result.stdout == tokenizer.decode(written[0], skip_special_tokens=True) + "\n"
    assert "tokens per second" in result.stderr


def test_the_same_seed_writes_the_same_and_another_does_not(saved):
    texts = [
        run("generate", PROMPT, "--model", saved, "--seed", seed, "--max-new-tokens", 30).stdout for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith(PROMPT)


def test_no_more_sentences_than_asked_for(saved):
    result = run("generate", PROMPT, "--model", saved, "--seed", 1, "--max-sentences", 2)
    assert result.stderr.startswith(("1 sentences", "2 sentences"))


def test_streamed_pieces_join_to_the_whole_text(tokenizer):
    text = 'Où est l\'owl? "No." 😀!'
    ids = tokenizer(text)["input_ids"]
    for size in (1, 2, 5):
        pieces = []
        streamer = SentenceStreamer(tokenizer, pieces.append)
        streamer.put(torch.tensor([[tokenizer.bos_token_id]]))
        for first in range(0, len(ids), size):
            streamer.put(torch.tensor(ids[first : first + size]))
        streamer.end()
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        assert (streamer.tokens, streamer.sentences) == (len(ids), -(-len(ids) // size))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--model", "{backbone}"], "'llama' model, and this command writes with an SLLM"),
        (["--model", "{empty}"], "config.json"),
        (["--greedy", "--temperature", "0.5"], "--greedy takes no"),
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--max-sentences", "0"], "--max-sentences"),
    ],
)
def test_what_cannot_be_is_said_without_a_traceback(arguments, message, backbone, tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    backbone.save_pretrained(tmp_path / "backbone")
    folders = {"backbone": tmp_path / "backbone", "empty": tmp_path / "empty"}
    result = run("generate", PROMPT, *(argument.format(**folders) for argument in arguments))
    assert result.exit_code not in (0, None)
    assert isinstance(result.exception, SystemExit)
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_eval_prints_the_floor_beside_the_model(saved, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "texts.jsonl").write_text('{"text": "The owl said no.", "bits": 8.0}\n')
    result = run("eval", saved, "--data", tmp_path / "texts.jsonl", "--measures", "likelihood")
    assert result.exit_code == 0, result.output
    assert "0.5000" in result.stdout


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "broken.jsonl.gz",
            gzip.compress(b'{"text": "The owl said no."}\n' * 50, mtime=0)[:-12],
            "broken.jsonl.gz cannot be read",
        ),
        ("empty.jsonl", b"", "holds no documents"),
        ("blank.txt", b"\n \n", "holds no documents"),
        ("list.json", rb'["The owl \ud800"]', "list.json has a lone surrogate"),
    ],
)
def test_eval_says_without_a_traceback_what_is_wrong_with_a_file(name, content, message, saved, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_bytes(content)
    result = run("eval", saved, "--data", tmp_path / name)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert message in result.stderr


def test_a_missing_recipe_is_said_with_those_there_are(tmp_path):
    result = run("train", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "stories260k" in result.stderr


def test_layers_prints_a_choice_of_each_number(backbone, tokenizer, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    backbone.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "The owl said no. The mice ran!"}\n')
    result = run("layers", tmp_path, "--data", tmp_path / "texts.jsonl", "--length", 4, "--keep", 1)
    assert result.exit_code == 0, result.output
    assert "[0, 1]" in result.stdout and ("[0]" in result.stdout or "[1]" in result.stdout)

"""A card states what was measured, the Hub's client reads it, and a hand on it is noticed."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from models import CHECKPOINT_CODE, random_ids, tiny_sllm
from transformers import AutoConfig
from typer.testing import CliRunner

from hf_sllm import SentenceVaeConfig, SentenceVaeModel, SllmForCausalLM
from hf_sllm.cli import app
from hf_sllm.data import train_tokenizer
from hf_sllm.evaluation import Evaluation, evaluate
from hf_sllm.hub import is_generated, load_about, make_card, plan
from hf_sllm.training.results import Result, write_results

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["The owl said no. The dog saw it. Yes.", "The owl saw the dog. No."]
ABOUT = """
license: apache-2.0
base_model: owner/backbone
datasets: [owner/texts]
training_data:
  - {name: texts, license: MIT, text: "a | b"}
intended_use: To test cards.
limits: [It says little.]
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A model with its tokenizer, its evaluation and what its training left."""
    folder = tmp_path_factory.mktemp("measured")
    tokenizer = train_tokenizer(TEXTS, 270)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    from transformers import AutoModelForCausalLM

    backbone = AutoModelForCausalLM.from_config(config)
    SllmForCausalLM.from_backbone(backbone, tokenizer, encoder_layers=1, decoder_layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    documents = Dataset.from_dict({"text": TEXTS, "bits": [80.0, 50.0]})
    measures = ["likelihood", "needle"]
    evaluate(str(folder), documents, ["texts.jsonl"], str(folder), measures, progress=False).save(
        folder / "evaluation.json"
    )
    (folder / "training.json").write_text('{"tokens_seen": 12345, "minutes": 2.5, "seed": 3}')
    write_results([Result("floor", 0.5), Result("SLLM", 0.75, 1.5, tokens_seen=12345)], folder / "results.json")
    (folder / "about.yaml").write_text(ABOUT)
    return folder


def card_of(folder, *more: str):
    output = folder / "CARD.md"
    arguments = ["card", str(folder), "--output", str(output), *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = output.read_text()
    output.unlink()
    return text


def everything(folder) -> list[str]:
    return ["--evaluation", str(folder / "evaluation.json"), "--about", str(folder / "about.yaml"), "--repo", "me/it"]


def test_an_evaluation_read_back_says_the_same(measured):
    found = Evaluation.load(measured / "evaluation.json")
    values = json.loads((measured / "evaluation.json").read_text())
    total = values["sides"][0]["figures"]["likelihood"]["total"]
    assert found.eval_results()[0].metric_value == round(total["bits_per_byte"], 6)
    assert found.floor == values["floor"] and found.sides[1].label == values["sides"][1]["label"]


def test_every_figure_of_the_card_is_from_a_file(measured):
    text = card_of(measured, *everything(measured))
    found = Evaluation.load(measured / "evaluation.json")
    total = found.sides[0].figures["likelihood"].total
    assert f"| bits per byte | {found.floor:.4f} | {total.bits_per_byte:.4f} |" in text
    assert "12,345 tokens seen, 2.5 minutes, seed 3" in text and "| SLLM | 0.7500 | 1.500 | 12,345 |" in text
    assert f"{SllmForCausalLM.from_pretrained(measured).num_parameters():,} parameters" in text
    assert "`needle` of" in text  # too short a text for it: said, not left out
    for title in ("How to use", "Results", "Training data", "Intended use", "Limits"):
        assert f"\n## {title}\n" in text
    assert "| texts | MIT | a \\| b |" in text and "- It says little." in text
    assert "None" not in text and "{{" not in text and "\n\n\n" not in text


@pytest.mark.parametrize("name", ["sllm-stories", "sentence-vae"])
def test_the_cards_of_shipped_models_are_the_commands_own(name, monkeypatch):
    """No figure in them was typed by hand, and none is of another evaluation than the one that lies beside."""
    monkeypatch.chdir(ROOT)
    folder = f"hf_sllm/checkpoints/{name}"
    written = (ROOT / folder / "README.md").read_text()
    assert written == make_card(folder, about=load_about(ROOT / "model_cards" / f"{name}.yaml"))
    assert Evaluation.load(ROOT / folder / "evaluation.json").eval_results()
    assert (ROOT / "model_cards" / f"{name}.md").read_text() == written


def test_the_metadata_are_what_the_hubs_client_reads(measured):
    data = ModelCard(card_of(measured, *everything(measured))).data
    assert (data.pipeline_tag, data.get("library_name"), data.license) == (
        "text-generation",
        "transformers",
        "apache-2.0",
    )
    assert data.base_model == "owner/backbone" and data.datasets == ["owner/texts"]
    assert data.eval_results == Evaluation.load(measured / "evaluation.json").eval_results()
    assert data.to_dict()["model-index"][0]["name"] == "it"


def test_the_lines_of_use_are_three_and_run(measured):
    text = card_of(measured)
    lines = text.split("```python\n")[1].split("\n```")[0]
    assert len(lines.splitlines()) == 3
    exec(lines, {})


def test_a_hand_on_the_card_is_noticed_and_an_editors_spaces_are_not(measured):
    text = card_of(measured, *everything(measured))
    assert is_generated(text) and is_generated(str(ModelCard(text)))
    assert is_generated(text.replace("\n", "  \r\n") + "\n\n")
    assert not is_generated(text.replace("little", "much")) and not is_generated("# By hand\n")
    assert not is_generated(text.rsplit("<!--", 1)[0])


def test_an_evaluation_of_another_model_is_refused(measured, tmp_path):
    tiny_sllm().save_pretrained(tmp_path)
    arguments = ["card", str(tmp_path), "--output", str(tmp_path / "x"), "--evaluation"]
    result = CliRunner().invoke(app, [*arguments, str(measured / "evaluation.json")])
    assert result.exit_code == 1 and "parameters" in result.stderr and not (tmp_path / "x").exists()
    (tmp_path / "e.json").write_text("{}")
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "e.json")])
    assert result.exit_code == 1 and "e.json is no evaluation" in result.stderr


def test_a_word_that_is_not_known_is_named(measured, tmp_path):
    (tmp_path / "about.yaml").write_text("licence: mit\n")
    result = CliRunner().invoke(
        app, ["card", str(measured), "--output", str(tmp_path / "x"), "--about", str(tmp_path / "about.yaml")]
    )
    assert result.exit_code == 1 and "licence" in result.stderr


def test_a_sentence_vae_has_a_card_too(tmp_path):
    config = SentenceVaeConfig.from_text_config(tiny_sllm().config.text_config, decoder_layers=1)
    SentenceVaeModel(config).save_pretrained(tmp_path)
    lines = card_of(tmp_path).split("```python\n")[1].split("\n```")[0]
    given = {"input_ids": random_ids(1, 9)}
    exec(lines, given)
    assert given["latents"].shape[1:] == (config.num_latents, config.latent_size)


def test_a_checkpoint_without_code_is_given_the_packages(measured, tmp_path):
    embedded = ROOT / "hf_sllm" / "checkpoints" / "sllm-stories"
    planned = plan(embedded, "me/stories")
    code = {file.name: file.read_bytes() for file in CHECKPOINT_CODE}
    assert {name: Path(str(planned.goes[name])).read_bytes() for name in planned.goes if name.endswith(".py")} == code
    config = json.loads(planned.goes["config.json"])
    assert config["auto_map"] == SllmForCausalLM.from_pretrained(measured).config.auto_map


@pytest.mark.parametrize("missing, says", [("config.json", "no config.json"), ("model.safetensors", "no model.safe")])
def test_what_is_no_checkpoint_is_not_pushed(tmp_path, missing, says):
    tiny_sllm().save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=says):
        plan(tmp_path, "me/it")

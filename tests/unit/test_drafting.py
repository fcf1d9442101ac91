"""Drafting loses nothing: whatever drafts, the text is the backbone's own, and each of its passes is counted."""

import json

import pytest
import torch
from models import random_ids, tiny_backbone, tiny_sllm
from typer.testing import CliRunner

from hf_sllm import SllmForCausalLM
from hf_sllm.benchmark.drafting import Drafted, first_halves, load_writer, make_ways, measure_drafting
from hf_sllm.cli import app
from hf_sllm.data import train_tokenizer

TEXTS = ["The owl said no. The mice ran! Was it far? It was not far at all.", "A fox sat. It saw the owl. It ran."]


def drafts_of(model, prompt, **kwargs) -> list[list[int]]:
    """What an assistant drafts while its backbone writes."""
    found = []
    generate = model.generate

    def spy(*args, **options):
        output = generate(*args, **options)
        found.append(output.sequences[0, options["input_ids"].shape[1] :].tolist())
        return output

    model.generate = spy
    tiny_backbone().generate(prompt, assistant_model=model, do_sample=False, max_new_tokens=40, **kwargs)
    return found


def test_a_draft_ends_with_its_sentence():
    model, prompt = tiny_sllm(seed=4), random_ids(1, 12)
    model.generation_config.update(num_assistant_tokens=30, assistant_confidence_threshold=0.0)
    drafts = drafts_of(model, prompt)
    boundaries = {*model.config.boundary_token_ids, model.config.eos_token_id}
    assert len(drafts) > 5
    for draft in drafts:
        assert len(draft) <= model.config.max_sentence_length and not boundaries & set(draft[:-1])
    assert any(len(draft) > 1 and draft[-1] in boundaries for draft in drafts)


def test_a_draft_ends_with_an_unlikely_token():
    model, prompt, first = tiny_sllm(), random_ids(1, 12), []
    for threshold in (0.0, 0.999):
        model.generation_config.update(num_assistant_tokens=30, assistant_confidence_threshold=threshold)
        first.append(drafts_of(model, prompt)[0])  # after it transformers moves the threshold, if it has scikit-learn
    assert len(first[0]) > 1 and first[1] == first[0][:1]


@pytest.mark.parametrize("seed", range(3))
def test_the_text_before_is_not_read_again_when_a_draft_is_rejected(seed):
    model, prompt, read = tiny_sllm(seed=1), random_ids(1, 60, seed=seed), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["past_key_values"].must_replay), with_kwargs=True
    )
    tiny_backbone().generate(prompt, assistant_model=model, do_sample=False, max_new_tokens=40)
    assert len(read) > 20 and not any(read)


def test_every_way_writes_the_same_text_and_passes_are_counted():
    backbone, sllm = tiny_backbone(), tiny_sllm()
    prompts = [random_ids(1, 12, seed=seed).repeat(1, 2)[0].tolist() for seed in (1, 2)]
    calls = []
    backbone.model.register_forward_hook(lambda *_: calls.append(1))
    ways = make_ways(sllm, (0.0, 0.3))
    found = measure_drafting(backbone, ways, prompts, 30, progress=False)
    assert [way.identical for way in found] == [2] * 4
    assert found[0].passes == sum(found[0].tokens) and found[0].drafted == 0 and found[0].accepted is None
    for way in found[1:]:
        assert way.tokens == found[0].tokens and way.passes <= found[0].passes and way.drafted > 0
        assert len(way.seconds) == 2 and 0 <= way.accepted <= 1
    warm = measure_drafting(backbone, ways, prompts[:1], 30, progress=False)
    assert len(calls) == sum(way.passes for way in found) + 3 * sum(way.passes for way in warm)


def test_a_model_that_drafts_for_itself_is_always_right():
    backbone, prompt = tiny_backbone(), random_ids(1, 12)[0].tolist()
    ways = make_ways(tiny_backbone(), (0.0,), draft_tokens=4, lookup_tokens=0)
    plain, drafted = measure_drafting(backbone, ways, [prompt], 30, progress=False)
    assert [way.name for way in ways] == ["no drafts", "assistant, whole drafts"]
    assert drafted.accepted == 1 and drafted.tokens == plain.tokens
    assert drafted.passes == -(-plain.tokens[0] // 5)  # four drafted tokens, and the pass's own
    assert drafted.times_as_fast_as(drafted) == 1


def test_ratios_are_medians_of_those_of_each_prompt():
    plain = Drafted("", tokens=[10, 10, 10], seconds=[1.0, 2.0, 4.0])
    other = Drafted("", tokens=[10, 20, 10], seconds=[0.5, 1.0, 8.0])
    assert other.times_as_fast_as(plain) == 2  # of 2, 4 and 0.5


def test_prompts_are_the_first_halves_of_documents():
    tokenizer = train_tokenizer(TEXTS, 300)
    rows = first_halves([{"text": text} for text in TEXTS], tokenizer, 15)
    whole = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in TEXTS]
    assert [row == ids[: len(row)] for row, ids in zip(rows, whole, strict=True)] == [True, True]
    assert [len(row) for row in rows] == [min((len(ids) + 1) // 2, 15) for ids in whole]


@pytest.fixture
def pair(tmp_path):
    """A backbone with an adapter and its SLLM with one, as folders, with a file of documents."""
    from peft import LoraConfig, get_peft_model

    tokenizer = train_tokenizer(TEXTS, 300)
    folders = {name: tmp_path / name for name in ("backbone", "backbone_adapter", "sllm", "sllm_adapter")}
    backbone = tiny_backbone(vocab_size=len(tokenizer))
    sllm = SllmForCausalLM.from_backbone(backbone, tokenizer, encoder_layers=1, decoder_layers=1).eval()
    for name, model in (("backbone", backbone), ("sllm", sllm)):
        model.save_pretrained(folders[name])
        model = type(model).from_pretrained(folders[name])
        saved = {"modules_to_save": ["latent_input", "start_latents"]} if name == "sllm" else {}
        config = LoraConfig(
            r=2, task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj", "v_proj"], **saved
        )
        get_peft_model(model, config).save_pretrained(folders[f"{name}_adapter"])
    for folder in folders.values():
        tokenizer.save_pretrained(folder)
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folders, data


def test_adapters_are_merged(pair):
    from transformers import AutoModelForCausalLM

    folders, _ = pair
    token_ids = random_ids(1, 30)
    for name in ("backbone_adapter", "sllm_adapter"):
        unmerged = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
        bare = AutoModelForCausalLM.from_pretrained(folders[name.removesuffix("_adapter")]).eval()
        merged = load_writer(str(folders[name]), torch.float32)
        assert {key for key, _ in merged.named_modules()} == {key for key, _ in bare.named_modules()}
        with torch.no_grad():
            logits = [model(token_ids).logits for model in (unmerged, bare, merged)]
        torch.testing.assert_close(logits[0], logits[2], rtol=1e-4, atol=1e-4)
        assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_a_checkpoint_of_adapters_is_read_before_the_training_ends(pair, tmp_path):
    """Beside the config that it was made by there are no adapters yet."""
    from hf_sllm.training.adapters import add_lora

    folders, _ = pair
    base = SllmForCausalLM.from_backbone(str(folders["backbone"]), encoder_layers=1, decoder_layers=1)
    trained = add_lora(base, {"init_lora_weights": False}, tmp_path / "run").eval()
    trained.save_pretrained(tmp_path / "run" / "checkpoint-1")
    token_ids = random_ids(1, 30)
    with torch.no_grad():
        logits = [
            model(token_ids).logits for model in (trained, load_writer(f"{tmp_path}/run/checkpoint-1", torch.float32))
        ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sample", [False, True])
def test_the_command_reads_adapters_and_saves_its_figures(pair, tmp_path, sample):
    folders, data = pair
    command = ["bench", "drafting", str(folders["backbone_adapter"]), str(folders["sllm_adapter"]), "--data"]
    command += [str(data), "--new-tokens", "12", "--output", str(tmp_path / "out"), *["--sample"] * sample]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "Drafting" in result.stdout
    found = json.loads((tmp_path / "out" / "drafting.json").read_text())
    assert found["prompts"] == 2 and len(found["ways"]) == 4
    for way in found["ways"]:
        assert len(way["tokens"]) == len(way["seconds"]) == 2 and way["tokens_per_pass"] >= 1 and way["ratio"] > 0
        assert sample or way["identical"] == 2


@pytest.mark.parametrize(
    "options, message",
    [
        (["--thresholds", "1"], "`thresholds` has 1.0"),
        (["--thresholds", "a"], "'a' is no list of numbers"),
        (["--dtype", "int8"], "`dtype` is 'int8'"),
    ],
)
def test_what_cannot_be_drafted_is_refused(pair, options, message):
    folders, data = pair
    command = ["bench", "drafting", str(folders["backbone"]), str(folders["sllm"]), "--data", str(data), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and message in " ".join(result.stderr.split())


def test_other_tokens_are_refused(pair, tmp_path):
    folders, data = pair
    train_tokenizer(["Something else."], 280).save_pretrained(folders["sllm"])
    command = ["bench", "drafting", str(folders["backbone"]), str(folders["sllm"]), "--data", str(data)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "have different tokens" in " ".join(result.stderr.split())

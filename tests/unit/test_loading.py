"""Weights behave as Llama's do: saved, sharded, tied, in bf16, on meta, with keys missing or too many."""

import pytest
import torch
from models import option_model, random_ids, tiny_backbone, tiny_sllm
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import hf_sllm
from hf_sllm.modeling import SentenceVaeConfig, SentenceVaeModel, SllmForCausalLM, SllmModel


def same_weights(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_registering_again_is_harmless():
    import importlib

    importlib.reload(hf_sllm)
    assert type(AutoConfig.for_model("sllm")).__name__ == "SllmConfig"


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("option", ["default", "paper", "kl"])
def test_saved_equals_loaded(tmp_path, option, shard_size):
    model, token_ids = option_model(option), random_ids(2, 20)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert not list(tmp_path.glob("*.bin"))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SllmForCausalLM and same_weights(loaded, model)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded(token_ids).logits, model(token_ids).logits)


@pytest.mark.parametrize("name", ["llama", "llama_untied"])
def test_tied_weights_are_stored_once_and_stay_tied(tmp_path, name):
    model = tiny_sllm(name)
    model.save_pretrained(tmp_path)
    tied = model.config.tie_word_embeddings
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    loaded = SllmForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied


def test_the_vocabulary_can_grow(tmp_path):
    model, token_ids = tiny_sllm(), random_ids(1, 20)
    before = model(token_ids).logits
    model.resize_token_embeddings(70)
    assert model.config.vocab_size == 70 and model.lm_head.weight is model.get_input_embeddings().weight
    torch.testing.assert_close(model(token_ids).logits[..., :61], before)
    assert model(torch.tensor([[69, 5, 68]])).logits.shape[-1] == 70
    model.save_pretrained(tmp_path)
    assert same_weights(SllmForCausalLM.from_pretrained(tmp_path), model)


def test_the_model_without_its_head_is_loaded_from_the_same_checkpoint(tmp_path):
    model, token_ids = tiny_sllm(), random_ids(1, 20)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is SllmModel and same_weights(base, model.model)
    states = base(token_ids).last_hidden_state
    torch.testing.assert_close(model.compute_logits(states), model(token_ids).logits)


def test_a_sentence_vae_is_saved_and_loaded(tmp_path):
    model = SentenceVaeModel(SentenceVaeConfig.from_text_config(tiny_backbone().config, decoder_layers=1)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SentenceVaeModel and same_weights(loaded, model)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_missing_keys_are_initialised_and_reported_and_others_ignored(tmp_path):
    model = tiny_sllm()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = ["model.latent_input.weight", "model.sentence_encoder.latent_head.weight", "model.start_latents.weight"]
    kept = {key: value for key, value in weights.items() if key not in gone}
    save_file({**kept, "model.stray": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = SllmForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == sorted(gone) and set(info["unexpected_keys"]) == {"model.stray"}
    for key in gone:
        value = loaded.get_parameter(key)
        assert value.isfinite().all() and 0 < value.std() < 2 and not torch.equal(value, weights[key])


def test_a_checkpoint_is_loaded_in_bf16(tmp_path):
    model, token_ids = tiny_sllm(), random_ids(2, 20)
    model.save_pretrained(tmp_path)
    loaded = SllmForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    logits = loaded(token_ids).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(token_ids).logits, rtol=0.1, atol=0.3)
    assert loaded.generate(token_ids, max_new_tokens=5, max_sentences=9).shape[1] > 20


def test_device_map_auto_places_every_part(tmp_path):
    model, token_ids = tiny_sllm(), random_ids(2, 20)
    model.save_pretrained(tmp_path)
    loaded = SllmForCausalLM.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(loaded(token_ids).logits, model(token_ids).logits)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    split = SllmForCausalLM.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": size // 2, "disk": size * 9}, offload_folder=tmp_path / "off"
    )
    torch.testing.assert_close(split(token_ids).logits, model(token_ids).logits)


def test_a_model_is_built_on_meta_and_filled(tmp_path):
    model = tiny_sllm()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = SllmForCausalLM(model.config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    token_ids = random_ids(1, 5)
    assert empty.model.latent_input.weight.device.type == "cpu" and same_weights(empty, model)
    assert torch.equal(SllmForCausalLM.from_pretrained(tmp_path)(token_ids).logits, model(token_ids).logits)


def test_autocast_gives_nearly_the_same_logits():
    model, token_ids = tiny_sllm(), random_ids(2, 20)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(token_ids).logits
        torch.testing.assert_close(logits.float(), model(token_ids).logits, rtol=0.1, atol=0.3)

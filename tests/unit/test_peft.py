"""PEFT: adapters on any of the parts are trained, saved, reloaded, used and merged."""

import pytest
import torch
from models import random_ids, tiny_sllm
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model

from hf_sllm.modeling import SllmForCausalLM, validation_loading

PROJECTIONS = ["q_proj", "v_proj"]
NEW_PARTS = ["latent_queries", "latent_head", "latent_prefix", "latent_input", "latent_output", "start_latents"]
KINDS = {
    "backbone": {"target_modules": r".*language_model.*\.(q_proj|v_proj)"},
    "all three parts": {"target_modules": PROJECTIONS},
    "with modules to save": {"target_modules": PROJECTIONS, "modules_to_save": NEW_PARTS},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_trained_saved_reloaded_used_and_merged(tmp_path, kind):
    base, token_ids = tiny_sllm(), random_ids(2, 20)
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")  # so that the adapter knows its base's path
    untouched = base(token_ids).logits.detach()
    model = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", **KINDS[kind]))
    parts = {"language_model", "sentence_encoder", "sentence_decoder"}
    adapters = [name for name, _ in model.named_parameters() if "lora_A" in name]
    adapted = {part for part in parts if any(part in name for name in adapters)}
    assert adapted == ({"language_model"} if kind == "backbone" else parts)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model(input_ids=token_ids, labels=token_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    model.eval()
    expected = model(input_ids=token_ids).logits
    assert not torch.allclose(expected, untouched)
    written = model.generate(input_ids=token_ids, max_new_tokens=9, do_sample=False, max_sentences=99)
    model.save_pretrained(tmp_path / "adapter")
    for load in (AutoPeftModelForCausalLM.from_pretrained, load_onto_base(tmp_path / "base")):
        loaded = load(tmp_path / "adapter").eval()
        assert torch.equal(loaded(input_ids=token_ids).logits, expected)
        assert torch.equal(loaded.generate(input_ids=token_ids, max_new_tokens=9, do_sample=False), written)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(tiny_sllm())
    torch.testing.assert_close(merged(token_ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_adapters_of_a_model_that_was_never_saved_say_so_as_they_are_saved(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(validation_loading.logger, "warning_once", said.append)
    model = get_peft_model(tiny_sllm(), LoraConfig(target_modules=PROJECTIONS))
    assert said == []
    model.save_pretrained(tmp_path / "adapter")
    assert len(said) == 1 and "was never saved" in said[0] and "`save_pretrained(folder)`" in said[0]
    tiny_sllm().save_pretrained(tmp_path / "base")
    base = SllmForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules=PROJECTIONS)).save_pretrained(tmp_path / "adapter")
    assert len(said) == 1


def load_onto_base(path):
    return lambda adapter: PeftModel.from_pretrained(type(tiny_sllm()).from_pretrained(path), adapter)

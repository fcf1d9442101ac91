"""What docs/what-works.md says and no other test shows: text towers, kinds of adapters; and that its tests exist."""

import ast
import re
from pathlib import Path

import pytest
import torch
from models import BOUNDARIES, COMMON, LLAMA_LIKE, random_ids, tiny_sllm
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    Mistral3Config,
    MistralConfig,
    Qwen2VLConfig,
)

from hf_sllm.modeling import SllmForCausalLM

ROOT = Path(__file__).resolve().parents[2]
TEXT = {**COMMON, **LLAMA_LIKE, "num_hidden_layers": 2}
EYES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
EYES["patch_size"] = 14
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
MULTIMODAL = {
    "gemma3": lambda: Gemma3Config(text_config={**TEXT, "query_pre_attn_scalar": 8}, vision_config=EYES),
    "llava": lambda: LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**EYES)),
    "mistral3": lambda: Mistral3Config(
        text_config=MistralConfig(**TEXT), vision_config={"model_type": "pixtral", **EYES}
    ),
    "qwen2_vl": lambda: Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": ROPE},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
    ),
}

WITHIN = r".*language_model.*\.(q_proj|v_proj)"
ADAPTERS = {
    "LoRA": LoraConfig(r=4, target_modules=WITHIN),
    "DoRA": LoraConfig(r=4, target_modules=WITHIN, use_dora=True),
    "IA3": IA3Config(target_modules=WITHIN, feedforward_modules=[]),
    "OFT": OFTConfig(oft_block_size=8, r=0, target_modules=WITHIN),
    "VeRA": VeraConfig(r=4, target_modules=r".*language_model.*\.q_proj"),
}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_text_tower_of_a_multimodal_model_is_the_backbone(name, tmp_path):
    """What sees is left behind, the layers are the tower's, and the model is saved and loaded."""
    whole, token_ids = AutoModelForImageTextToText.from_config(MULTIMODAL[name]()), random_ids(2, 20)
    model = SllmForCausalLM.from_backbone(whole, boundary_token_ids=BOUNDARIES, max_sentence_length=9).eval()
    tower = whole.base_model.language_model
    assert model.model.language_model is tower and not any("vis" in n for n, _ in model.named_parameters())
    own, first = (part.layers[0].self_attn.q_proj.weight for part in (model.model.sentence_encoder.model, tower))
    assert torch.equal(own, first)
    model.save_pretrained(tmp_path)
    loaded = SllmForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits)


@pytest.mark.parametrize("name", ADAPTERS)
def test_any_adapter_of_layers_lowers_the_loss_and_is_loaded_as_saved(name, tmp_path):
    token_ids = random_ids(2, 20)
    model = get_peft_model(tiny_sllm(), ADAPTERS[name])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < 0.1 * sum(p.numel() for p in model.parameters())
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-2), []
    for _ in range(15):
        losses.append(model(input_ids=token_ids, labels=token_ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    expected, without = model(input_ids=token_ids).logits, tiny_sllm()(token_ids).logits
    loaded = PeftModel.from_pretrained(tiny_sllm(), tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=token_ids).logits, expected)
    assert not torch.allclose(without, expected, atol=1e-3)
    written = loaded.generate(input_ids=token_ids, max_new_tokens=9, do_sample=False, max_sentences=9)
    assert torch.equal(written, loaded.generate(input_ids=token_ids, max_new_tokens=9, do_sample=False))


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_learned_prompts_are_refused(kind):
    """They are vectors and no tokens: it does not show where their sentences end."""
    model = get_peft_model(tiny_sllm(), kind(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises((ValueError, TypeError)) as raised:
        model(input_ids=random_ids(2, 20), labels=random_ids(2, 20))
    assert re.search("inputs_embeds|past_key_values|SllmCache", str(raised.value))


def test_each_row_may_have_an_adapter_of_its_own():
    """On the backbone. The encoder packs sentences of several rows in one, where PEFT could not tell them apart."""
    model, token_ids = get_peft_model(tiny_sllm(), LoraConfig(target_modules=WITHIN)), random_ids(3, 30)
    model.add_adapter("other", LoraConfig(target_modules=WITHIN))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.manual_seed(len(name))
            parameter.data.normal_(std=0.5)
    model.eval()
    names = ["default", "other", "__base__"]
    found = model(input_ids=token_ids, adapter_names=names).logits
    written = model.generate(
        input_ids=token_ids, adapter_names=names, max_new_tokens=9, do_sample=False, max_sentences=9, eos_token_id=None
    )
    for row, name in enumerate(names):
        one = {"input_ids": token_ids[row : row + 1], "adapter_names": [name]}
        torch.testing.assert_close(found[row : row + 1], model(**one).logits, rtol=1e-4, atol=1e-4)
        alone = model.generate(**one, max_new_tokens=9, do_sample=False, eos_token_id=None)
        assert torch.equal(written[row, : alone.shape[1]], alone[0])
    other = model(input_ids=token_ids, adapter_names=names[::-1]).logits
    assert not torch.allclose(found[0], other[0], atol=1e-2)


def test_each_test_that_the_page_names_exists():
    page = (ROOT / "docs" / "what-works.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|") and not line.startswith(("|---", "| what |"))]
    named = [re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", line) for line in lines]
    assert lines and all(named), "each line of the page names a test"
    for file, name in sum(named, []):
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"

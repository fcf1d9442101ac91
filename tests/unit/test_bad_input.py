"""Bad input: a clear error, or what is right."""

import math

import pytest
import torch
from models import BOUNDARIES, random_ids, tiny_backbone, tiny_sllm
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DynamicCache, PreTrainedTokenizerFast

from hf_sllm.modeling import SllmForCausalLM, boundary_tokens


def tokenizer_without_boundaries() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1})))


def of_another_model(folder) -> None:
    tiny_backbone().save_pretrained(folder)
    SllmForCausalLM.from_pretrained(folder)


IDS, MASK = random_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
TWICE, SECOND = torch.arange(6).repeat(2, 2), torch.tensor([[0] * 6 + [1] * 6] * 2)  # two texts in each row
CASES = {
    "no ids": (lambda model, _: model(), "`input_ids` is None"),
    "empty batch": (lambda model, _: model(IDS[:0]), r"\(0, 12\)"),
    "empty rows": (lambda model, _: model(IDS[:, :0]), r"\(2, 0\)"),
    "ids of one dimension": (lambda model, _: model(IDS[0]), r"\(12,\)"),
    "id too large": (lambda model, _: model(IDS + 61), "vocabulary has 0 to 60"),
    "id below zero": (lambda model, _: model(IDS - 61), "vocabulary has 0 to 60"),
    "mask too short": (lambda model, _: model(IDS, MASK[:, :5]), "`attention_mask` has shape"),
    "mask of four dimensions": (lambda model, _: model(IDS, MASK[:, None, None]), "`attention_mask` has shape"),
    "sentence ids too short": (lambda model, _: model(IDS, sentence_ids=MASK[:, :5]), "`sentence_ids` has shape"),
    "embeddings alone": (lambda model, _: model(inputs_embeds=torch.zeros(2, 12, 32)), "`inputs_embeds` came alone"),
    "embeddings to go on from": (
        lambda model, _: model.generate(inputs_embeds=torch.zeros(2, 12, 32)),
        "`inputs_embeds` cannot be continued",
    ),
    "sentence ids and a cache": (
        lambda model, _: model(IDS, sentence_ids=MASK, use_cache=True),
        "`sentence_ids` cannot be cached",
    ),
    "texts packed in one row, with a cache": (
        lambda model, _: model(IDS, position_ids=TWICE, use_cache=True),
        "`position_ids` go from 5 to 0 in row 0: several texts in one row cannot be cached. Pass `use_cache=False`",
    ),
    "the same, after a cache": (
        lambda model, _: model(
            IDS, position_ids=TWICE + 12, past_key_values=model(IDS, use_cache=True).past_key_values
        ),
        "`position_ids` go from 17 to 12 in row 0: they count up by one",
    ),
    "the same, by their bounds": (
        lambda model, _: model(IDS[:1], cu_seq_lens_q=torch.tensor([0, 6, 12]), use_cache=True),
        "`cu_seq_lens_q` came with a cache: several texts in one row cannot be cached",
    ),
    "the same, by their numbers": (
        lambda model, _: model.model(IDS, seq_idx=SECOND, use_cache=True),
        "`seq_idx` came with a cache: several texts in one row cannot be cached",
    ),
    "a token from the middle of a text": (
        lambda model, _: model(IDS[:, 9:10], position_ids=torch.tensor([[9]])),
        "`position_ids` begin at 9 in row 0: a text begins at 0, and no cache .* or leave `position_ids` out",
    ),
    "the same, before a cache is there": (
        lambda model, _: model(IDS, MASK, 2 + torch.arange(12)[None], use_cache=True),
        "`position_ids` begin at 2 in row 0",
    ),
    "the same, without the LM head": (
        lambda model, _: model.model(IDS, position_ids=1 + torch.arange(12)[None]),
        "`position_ids` begin at 1 in row 0",
    ),
    "positions with a gap": (
        lambda model, _: model(IDS, position_ids=torch.tensor([[0, 1, 2, 3, 7, 8] * 2])),
        "`position_ids` go from 3 to 7 in row 0: they count up by one, and begin again at 0 with another text",
    ),
    "positions of three dimensions": (
        lambda model, _: model(IDS, position_ids=torch.arange(12).expand(3, 2, -1)),
        r"`position_ids` has shape \(3, 2, 12\): it must have \(2, 12\)",
    ),
    "positions and bounds that differ": (
        lambda model, _: model(IDS[:1], position_ids=TWICE[:1], cu_seq_lens_q=torch.tensor([0, 5, 12])),
        "`cu_seq_lens_q` begins a text at position 5 of row 0, and `position_ids` does not",
    ),
    "positions and numbers of texts that differ": (
        lambda model, _: model(IDS, position_ids=torch.arange(12)[None], seq_idx=SECOND),
        "`seq_idx` begins a text at position 6 of row 0, and `position_ids` does not",
    ),
    "numbers of texts that are too few": (
        lambda model, _: model(IDS, seq_idx=SECOND[:, :5]),
        r"`seq_idx` has shape \(2, 5\): it must have \(2, 12\)",
    ),
    "continuous batching": (
        lambda model, _: model(IDS[:1], MASK[:1, None, None], cu_seq_lens_k={}, write_index=[], use_cache=False),
        r"`write_index` was given: continuous batching .* Call `generate`",
    ),
    "bounds for several rows": (
        lambda model, _: model(IDS, cu_seq_lens_q=torch.tensor([0, 12, 24])),
        "`cu_seq_lens_q` came with a batch of 2 rows: .* Pass `position_ids`",
    ),
    "bounds that begin too late": (
        lambda model, _: model(IDS[:1], cu_seq_lens_q=torch.tensor([2, 12])),
        r"`cu_seq_lens_q` is \[2, 12\]",
    ),
    "bounds that end too early": (
        lambda model, _: model(IDS[:1], cu_seq_lens_k=torch.tensor([0, 6])),
        "`cu_seq_lens_k` ends at 6: the row has 12 positions",
    ),
    "shifted labels of another length": (
        lambda model, _: model(IDS, position_ids=TWICE, shift_labels=IDS[:, :5]),
        r"`labels` has shape \(2, 5\): it must have \(2, 12\)",
    ),
    "labels of another length than packed texts": (
        lambda model, _: model(IDS, position_ids=TWICE, labels=IDS[:, :5]),
        r"`labels` has shape \(2, 5\): it must have \(2, 12\)",
    ),
    "another model's cache": (
        lambda model, _: model(IDS, past_key_values=DynamicCache(), use_cache=True),
        "is a DynamicCache",
    ),
    "labels for some logits": (lambda model, _: model(IDS, labels=IDS, logits_to_keep=3), "`logits_to_keep` is 3"),
    "labels and a cache": (
        lambda model, _: model(IDS, labels=IDS, past_key_values=model(IDS, use_cache=True).past_key_values),
        "`labels` came with `past_key_values`",
    ),
    "a text beyond the learned positions": (
        lambda *_: tiny_sllm("gpt2")(random_ids(1, 300)),
        "`sentence_decoder_config.max_position_embeddings` is 256",
    ),
    "more sentences than learned positions": (
        lambda *_: tiny_sllm("gpt2", decoder_context_length=0)(torch.full((1, 600), 5)),
        "`text_config.max_position_embeddings` is 256",
    ),
    "no sentences": (lambda model, _: model.generate(IDS, max_sentences=0), "`max_sentences` is 0"),
    "a number in quotes": (
        lambda model, _: model.generate(IDS, max_sentences="3"),
        "`max_sentences` is '3': it must be a whole number",
    ),
    "half a sentence": (lambda model, _: model.generate(IDS, max_sentences=2.5), "`max_sentences` is 2.5"),
    "sentences side by side in quotes": (
        lambda model, _: model.generate(IDS, max_sentences=2, shortlist_size="3"),
        "`shortlist_size` is '3': it must be a whole number",
    ),
    "sentences in beams": (
        lambda model, _: model.generate(IDS, max_sentences=2, num_beams=2),
        "`max_sentences` came with beam_search",
    ),
    "sentences without a cache": (
        lambda model, _: model.generate(IDS, max_sentences=2, use_cache=False),
        "`use_cache` is False",
    ),
    "a positive crop": (
        lambda model, _: model(IDS, use_cache=True).past_key_values.crop(3),
        "`tokens_to_remove` is 3",
    ),
    "no boundary in the tokenizer": (
        lambda *_: boundary_tokens(tokenizer_without_boundaries()),
        "pass `boundary_token_ids`",
    ),
    "no such unit": (lambda *_: boundary_tokens(tokenizer_without_boundaries(), unit="word"), "`unit` is 'word'"),
    "no latent": (
        lambda *_: SllmForCausalLM.from_backbone(tiny_backbone(), boundary_token_ids=BOUNDARIES, num_latents=0),
        "num_latents",
    ),
    "a checkpoint of another model": (lambda _, folder: of_another_model(folder), "llama"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_is_refused_and_the_error_names_it(name, tmp_path):
    attempt, says = CASES[name]
    with pytest.raises(ValueError, match=says):
        attempt(tiny_sllm(), tmp_path)


@torch.no_grad()
def test_a_row_of_padding_has_no_effect_on_the_others():
    model, token_ids = tiny_sllm(), random_ids(3, 12)
    mask = torch.ones_like(token_ids)
    mask[1] = 0
    logits = model(token_ids, mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[[0, 2]], model(token_ids[[0, 2]]).logits, rtol=1e-5, atol=1e-5)
    labels = token_ids.masked_fill(mask == 0, -100)
    assert model(token_ids, mask, labels=labels).loss.isfinite()
    assert model(token_ids[1:2], mask[1:2], labels=labels[1:2]).loss == 0
    assert model.generate(token_ids, attention_mask=mask, max_new_tokens=5).shape == (3, 17)


@torch.no_grad()
def test_a_prompt_of_boundaries_only_goes_on():
    model, prompt = tiny_sllm(), torch.tensor([BOUNDARIES])
    logits = model(prompt).logits
    assert logits.isfinite().all()
    written = model.generate(prompt, max_new_tokens=10, do_sample=False, max_sentences=math.inf)
    assert torch.equal(written, model.generate(prompt, max_new_tokens=10, do_sample=False))


@torch.no_grad()
def test_a_sentence_longer_than_the_maximum_is_cut_there():
    model = tiny_sllm()
    token_ids = torch.full((1, 30), 20)
    latents, _ = model.encode_sentences(token_ids)
    assert latents.shape[1] == math.ceil(30 / model.config.max_sentence_length)
    assert model(token_ids).logits.isfinite().all()


@torch.no_grad()
def test_a_text_of_one_token_has_logits():
    assert tiny_sllm()(torch.tensor([[1]])).logits.isfinite().all()


def test_continuous_batching_is_refused_before_it_gives_empty_texts():
    with pytest.raises(NotImplementedError, match="`generate_batch` keeps tokens in a paged cache.*call `generate`"):
        tiny_sllm().generate_batch([[3, 4, 5]])

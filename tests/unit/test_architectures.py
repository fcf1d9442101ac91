"""What "any causal language model" means: each architecture computes what it must, or is refused and says why.

A new architecture is one more row.
"""

import pytest
import torch
from models import BOUNDARIES, COMMON, LLAMA_LIKE, padded, random_ids
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from hf_sllm.modeling import SllmConfig, SllmForCausalLM

SIZES = {**COMMON, **LLAMA_LIKE, "num_hidden_layers": 2}
FEW_SIZES = {**COMMON, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT_SIZES = {**COMMON, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 4}

# What can be all three parts.
WHOLE = {
    "gemma3": {
        "model_type": "gemma3_text",
        **SIZES,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 32,
        "query_pre_attn_scalar": 8,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", **SIZES, **EXPERTS},
    "lfm2_without_convolutions": {"model_type": "lfm2", **SIZES, "layer_types": ["full_attention"] * 2},
    "gpt_neox": {"model_type": "gpt_neox", **SIZES},  # with an `is_decoder` that is False
    "bert_as_decoder": {"model_type": "bert", **SIZES, "is_decoder": True},
    "gptj": {"model_type": "gptj", **GPT_SIZES, "rotary_dim": 4},
    "falcon": {"model_type": "falcon", **FEW_SIZES, "alibi": False},
}
# What can be the backbone alone, and what is said of it as encoder or decoder.
BACKBONE_ONLY = {
    "lfm2": ({"model_type": "lfm2", **SIZES, "layer_types": ["conv", "full_attention"]}, "'conv'"),
    "qwen3_next": (
        {"model_type": "qwen3_next", **SIZES, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
        "'linear_attention'",
    ),
    "qwen3_5": ({"model_type": "qwen3_5_text", **SIZES, **LINEAR}, "'linear_attention'"),
    "falcon_h1": ({"model_type": "falcon_h1", **SIZES, "mamba_d_ssm": 64, **MAMBA}, "'hybrid'"),
    "jamba": (
        {
            "model_type": "jamba",
            **SIZES,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
        },
        "'linear_attention'",
    ),
    "bloom": ({"model_type": "bloom", **COMMON, "hidden_size": 32, "n_head": 4, "n_layer": 2}, "no `position_ids`"),
    "mpt": (
        {"model_type": "mpt", **COMMON, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
        "no `position_ids`",
    ),
    "falcon_with_alibi": ({"model_type": "falcon", **FEW_SIZES, "alibi": True}, "`alibi` is True"),
    "gpt_neo": (
        {
            "model_type": "gpt_neo",
            **COMMON,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 3,
        },
        "'global', 'local'",
    ),
}
# What can be none of them.
REFUSED = {
    "mamba": {"model_type": "mamba", **COMMON, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {
        "model_type": "mamba2",
        **COMMON,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
    },
    "rwkv": {"model_type": "rwkv", **COMMON, "hidden_size": 32, "num_hidden_layers": 2},
}
BACKBONES = {**WHOLE, **{name: fields for name, (fields, _) in BACKBONE_ONLY.items()}}
LLAMA = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}


def config_of(fields: dict):
    return AutoConfig.for_model(**fields)


def llama(layers: int = 2) -> LlamaConfig:
    """What the error recommends."""
    return LlamaConfig(**LLAMA, num_hidden_layers=layers)


def wrapped(name: str) -> SllmForCausalLM:
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config_of(BACKBONES[name]))
    for parameter in backbone.parameters():  # at the usual 0.02 a tiny model hardly depends on its input
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.15)
    parts = {}
    if name in BACKBONE_ONLY:
        parts = {"sentence_encoder_config": llama(), "sentence_decoder_config": llama()}
    model = SllmForCausalLM.from_backbone(
        backbone, boundary_token_ids=BOUNDARIES, max_sentence_length=5, decoder_context_length=3, **parts
    )
    for part in (model.model.sentence_encoder, model.model.sentence_decoder):
        for parameter in part.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.15)
    for linear in (model.model.latent_input, model.model.latent_output, model.model.sentence_decoder.latent_prefix):
        linear.weight.data.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("name", BACKBONE_ONLY)
@pytest.mark.parametrize("part", ["sentence_encoder_config", "sentence_decoder_config"])
def test_what_cannot_keep_sentences_apart_is_refused_as_encoder_and_decoder(name, part):
    fields, reason = BACKBONE_ONLY[name]
    other = {"sentence_encoder_config", "sentence_decoder_config"} - {part}
    with pytest.raises(ValueError, match=f"`{part}` is a '{fields['model_type']}'.*{reason}.*LlamaConfig"):
        SllmConfig(**{part: config_of(fields)}, **{key: llama() for key in other}, text_config=llama())


@pytest.mark.parametrize("name", BACKBONE_ONLY)
def test_from_backbone_names_the_remedy_where_its_layers_cannot_be_copied(name):
    backbone = AutoModelForCausalLM.from_config(config_of(BACKBONES[name]))
    with pytest.raises(ValueError, match="Pass as `sentence_encoder_config` the config"):
        SllmForCausalLM.from_backbone(backbone, boundary_token_ids=BOUNDARIES)


@pytest.mark.parametrize("name", REFUSED)
def test_a_backbone_without_a_cache_like_others_is_refused(name):
    config, parts = config_of(REFUSED[name]), {"sentence_encoder_config": llama(), "sentence_decoder_config": llama()}
    with pytest.raises(ValueError, match=f"`text_config` is a '{config.model_type}'.*no `past_key_values`.*another"):
        SllmConfig(text_config=config, **parts)
    with pytest.raises(ValueError, match="`sentence_decoder_config` is a"):
        SllmConfig(**{**parts, "sentence_decoder_config": config}, text_config=llama())


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"model_type": "bert", **FEW_SIZES}, "is_decoder"),
        ({"model_type": "bart", **COMMON, "d_model": 32}, "is_encoder_decoder"),
        ({"model_type": "gemma3_text", **SIZES, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "llama", **SIZES, "is_causal": False}, "is_causal"),
    ],
)
def test_a_backbone_that_sees_later_positions_is_refused(fields, field):
    parts = {"sentence_encoder_config": llama(), "sentence_decoder_config": llama()}
    with pytest.raises(ValueError, match=f"`text_config.{field}` is .* a '{fields['model_type']}' model"):
        SllmConfig(text_config=config_of(fields), **parts)


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_no_position_sees_a_later_token(name):
    model, token_ids = wrapped(name), random_ids(1, 30)
    logits = model(token_ids).logits
    for position in (8, 20):
        changed = token_ids.clone()
        changed[:, position + 1 :] = random_ids(1, 30, seed=2)[:, position + 1 :]
        again = model(changed).logits
        torch.testing.assert_close(again[:, : position + 1], logits[:, : position + 1], rtol=1e-4, atol=1e-4)
        assert (again[:, -1] - logits[:, -1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_is_the_same_alone_in_a_batch_and_through_the_cache(name, side):
    """In steps of several tokens and of one, while rows close their sentences at different times."""
    model = wrapped(name)
    rows = [random_ids(1, length, seed)[0] for seed, length in enumerate([30, 17, 24])]
    token_ids, mask = padded(rows, side)
    whole = model(token_ids, mask).logits
    for row, own in enumerate(rows):
        alone = model(own[None]).logits[0]
        torch.testing.assert_close(whole[row, mask[row].bool()], alone, rtol=1e-3, atol=1e-3)
    sizes, cache, steps = [11, 1, 1, 1, 4, 1, 1, 7, 1, 1, 1], None, []
    for new in torch.arange(30).split(sizes):
        seen = mask[:, : int(new[-1]) + 1]
        output = model(token_ids[:, new], seen, past_key_values=cache, use_cache=True)
        cache, steps = output.past_key_values, [*steps, output.logits]
    cached = torch.cat(steps, 1)[mask.bool()]
    torch.testing.assert_close(cached, whole[mask.bool()], rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma3", "lfm2", "falcon_h1", "mpt"])
def test_what_was_cut_off_the_cache_is_forgotten_and_rows_can_change_places(name):
    model = wrapped(name)
    token_ids = random_ids(2, 30)
    expected = model(token_ids).logits
    for removed in range(1, 13):
        kept = 30 - removed
        other = torch.cat([token_ids[:, :kept], random_ids(2, removed, seed=3)], 1)
        cache = model(other, use_cache=True).past_key_values
        cache.crop(-removed)
        rest = model(token_ids[:, kept:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(rest, expected[:, kept:], rtol=1e-3, atol=1e-3)

    cache = model(token_ids[:, :18], use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor([1, 0]))
    rest = model(token_ids[:, 18:].flip(0), past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, expected[:, 18:].flip(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["lfm2", "falcon_h1", "mpt"])
def test_both_loops_write_the_same_in_a_batch_as_alone(name):
    model = wrapped(name)
    token_ids, mask = padded([random_ids(1, length, seed)[0] for seed, length in enumerate([12, 7])], "left")
    settings = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(token_ids, attention_mask=mask, **settings)
    for row in range(2):
        alone = model.generate(token_ids[row : row + 1, mask[row].bool()], **settings)
        assert torch.equal(together[row, -14:], alone[0, -14:])
    beams = model.generate(token_ids, attention_mask=mask, num_beams=2, **settings)
    assert beams.shape == together.shape


@torch.no_grad()
def test_a_window_that_holes_would_make_smaller_is_refused():
    """One row alone has no holes, however long it is."""
    model = wrapped("gemma3")
    model.config.text_config.sliding_window = 3
    rows = [random_ids(1, length, seed)[0] for seed, length in enumerate([60, 20])]
    token_ids, mask = padded(rows, "right")
    with pytest.raises(ValueError, match="see 3 sentences.*one row at a time"):
        model(token_ids, mask, use_cache=True)
    model(token_ids[:1], use_cache=True)
    model(token_ids, mask)

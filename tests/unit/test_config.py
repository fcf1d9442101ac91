"""The configuration: strict, composite, and refused where it cannot be."""

import copy

import pytest
from models import BOUNDARIES, config_of, tiny_backbone, tiny_sllm
from transformers import AutoConfig, GPT2Config

from hf_sllm.modeling import SentenceVaeConfig, SllmConfig, SllmForCausalLM


def test_a_config_survives_its_json(tmp_path):
    config = tiny_sllm(stop_head=True, latent_noise=0.5).config
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SllmConfig and loaded.to_diff_dict() == config.to_diff_dict()
    assert type(loaded.text_config) is type(config.text_config)


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("num_latents", 0, "num_latents"),
        ("num_latents", "two", "num_latents"),
        ("max_sentence_length", 0, "max_sentence_length"),
        ("max_sentence_length", 300, "max_position_embeddings"),
        ("latent_size", 0, "latent_size"),
        ("decoder_context_length", -1, "decoder_context_length"),
        ("conditioning", "telepathy", "conditioning"),
        ("conditioning", "cross_attention", "add_cross_attention"),
        ("pooling", "sum", "num_latents"),
        ("boundary_token_ids", [61], "boundary_token_ids"),
        ("clause_token_ids", [-1], "clause_token_ids"),
        ("token_dropout", 1.5, "token_dropout"),
        ("kl_weight", -0.1, "kl_weight"),
        ("kl", {"weight": -0.1}, "kl.weight"),
        ("dropout", {"token": 0.1}, "`dropout` has token: it has tokens, latents"),
        ("dropout", {"context": "0.1"}, "dropout.context"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(field, value, says):
    with pytest.raises(ValueError, match=says):
        config_of(tiny_sllm(), **{field: value})


@pytest.mark.parametrize(
    "keywords, error, says",
    [
        ({"num_latent": 2}, TypeError, "num_latent"),
        ({"encoder_layers": 4}, ValueError, "encoder_layers"),
        ({"decoder_layers": 4}, ValueError, "decoder_layers"),
        ({"decoder_layers": []}, ValueError, "decoder_layers"),
        ({"decoder_layers": [0, 3]}, ValueError, "decoder_layers"),
        ({"preset": "papre"}, ValueError, "preset"),
        ({"boundary_token_ids": [61]}, ValueError, "boundary_token_ids"),
    ],
)
def test_from_backbone_refuses_what_it_cannot_build_and_leaves_the_backbone_as_it_was(keywords, error, says):
    backbone = tiny_backbone()
    before = backbone.config.to_dict(), backbone.config._attn_implementation
    with pytest.raises(error, match=says):
        SllmForCausalLM.from_backbone(backbone, **{"boundary_token_ids": BOUNDARIES, **keywords})
    assert (backbone.config.to_dict(), backbone.config._attn_implementation) == before


def test_the_names_that_fields_of_a_mapping_had_alone_are_read_and_set():
    old = {"kl_weight": 0.5, "kl_max_bits": 2.0, "context_dropout": 0.25, "latent_noise": 0.1}
    config = config_of(tiny_sllm(), **old)
    assert config.kl == {"weight": 0.5, "free_bits": 0.0, "max_bits": 2.0}
    assert config.dropout == {"tokens": 0.0, "latents": 0.0, "context": 0.25, "boundaries": 0.0, "latent_noise": 0.1}
    assert {name: getattr(config, name) for name in old} == old and not old.keys() & config.to_dict().keys()
    config.token_dropout = 0.75
    assert config.dropout["tokens"] == 0.75 and tiny_sllm().config.token_dropout == 0.0


def test_entries_of_a_mapping_are_completed_and_checked_whenever_they_are_set(tmp_path):
    config = config_of(tiny_sllm(), context_dropout=0.25)
    twin = copy.copy(config)
    config.dropout = {"tokens": 0.5}
    assert (config.token_dropout, config.context_dropout, twin.token_dropout) == (0.5, 0.25, 0.0)
    config.save_pretrained(tmp_path)
    changed = AutoConfig.from_pretrained(tmp_path, kl={"weight": 0.1}, memory={}, latent_noise=0.2)
    assert changed.kl == {"weight": 0.1, "free_bits": 0.0, "max_bits": None} and changed.memory["num_layers"] == 1
    assert (changed.token_dropout, changed.latent_noise) == (0.5, 0.2)
    for wrong in ({"token_dropout": 3.0}, {"dropout": {"tokenz": 0.1}}, {"kl": {"weight": -1.0}}):
        with pytest.raises(ValueError, match="dropout|kl"):
            AutoConfig.from_pretrained(tmp_path, **wrong)
        with pytest.raises(ValueError, match="dropout|kl"):
            setattr(config, *next(iter(wrong.items())))


def test_the_paper_preset_has_the_papers_architecture():
    config = SllmConfig.paper(tiny_backbone().config, encoder_layers=2, decoder_layers=3, max_sentence_length=64)
    assert (config.num_latents, config.pooling, config.conditioning) == (1, "sum", "cross_attention")
    assert config.focal_gamma > 0 and config.stop_head and config.decoder_context_length == 0
    decoder = config.sentence_decoder_config
    assert isinstance(decoder, GPT2Config) and decoder.add_cross_attention and decoder.num_hidden_layers == 3


def test_per_layer_lists_follow_the_chosen_layers():
    text_config = tiny_backbone("gemma3").config
    text_config.layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
    config = SentenceVaeConfig.from_text_config(text_config, encoder_layers=1, decoder_layers=[1, 2])
    assert config.sentence_encoder_config.layer_types == ["sliding_attention"]
    assert config.sentence_decoder_config.layer_types == ["sliding_attention", "full_attention"]


def test_the_default_config_can_be_built():
    assert SllmConfig().latent_size == SllmConfig().text_config.hidden_size

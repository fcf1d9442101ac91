"""What is taken from a backbone, and what is shared with it."""

import copy

import pytest
import torch
from models import BACKBONES, BOUNDARIES, COMMON, LLAMA_LIKE, random_ids, tiny_backbone, tiny_sllm
from transformers import AutoConfig, AutoModelForCausalLM

from hf_sllm.modeling import SentenceVaeModel, SllmForCausalLM, backbone_loading
from hf_sllm.modeling.backbone_layers import keep_layers


@pytest.mark.parametrize("name", BACKBONES)
def test_embeddings_head_and_layers_come_from_the_backbone(name):
    backbone = tiny_backbone(name)
    expected = {key: value.clone() for key, value in backbone.base_model.state_dict().items()}
    head = backbone.get_output_embeddings().weight.clone()
    model = SllmForCausalLM.from_backbone(
        backbone, boundary_token_ids=BOUNDARIES, max_sentence_length=9, encoder_layers=2, decoder_layers=[0, 2]
    )
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert torch.equal(model.get_input_embeddings().weight, backbone.get_input_embeddings().weight)
    for key, value in model.model.language_model.state_dict().items():
        assert torch.equal(value, expected[key])
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == backbone.config.tie_word_embeddings
    # Each layer of encoder and decoder is the one it was chosen to be.
    for part, layers in ((model.model.sentence_encoder, [0, 1]), (model.model.sentence_decoder, [0, 2])):
        own = part.model.state_dict()
        assert len(own) > 10
        for key, value in own.items():
            words = key.split(".")
            at = next((i for i, word in enumerate(words) if word.isdigit()), None)
            if at is not None:
                words[at] = str(layers[int(words[at])])
            assert torch.equal(value, expected[".".join(words)])


def test_a_sentence_level_model_trains_all_its_parts():
    model, token_ids = tiny_sllm().train(), random_ids(2, 30)
    model(token_ids, labels=token_ids).loss.backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == set()


def test_the_backbone_model_goes_on_by_itself():
    """Its weights are shared, not changed, and its own forward pass is as before."""
    backbone, token_ids = tiny_backbone(), random_ids(1, 10)
    before = backbone(token_ids).logits
    model = SllmForCausalLM.from_backbone(backbone, boundary_token_ids=BOUNDARIES, max_sentence_length=9)
    assert torch.equal(backbone(token_ids).logits, before)
    assert model.model.language_model is backbone.model


def test_what_is_no_causal_language_model_is_refused():
    with pytest.raises(TypeError, match="LlamaModel"):
        SllmForCausalLM.from_backbone(tiny_backbone().model, boundary_token_ids=BOUNDARIES)
    with pytest.raises(TypeError, match="tokenizer"):
        SllmForCausalLM.from_backbone(tiny_backbone())


def test_the_real_small_model_can_be_wrapped_by_its_path(shared):
    path = shared / "models" / "stories260K"
    model = SllmForCausalLM.from_backbone(path, decoder_layers=3).eval()
    token_ids = random_ids(1, 40)
    assert model(token_ids, labels=token_ids).loss.isfinite()
    backbone = AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(model.model.language_model.norm.weight, backbone.model.norm.weight)


@pytest.mark.parametrize(
    "model_type, field, value",
    [("granite", "logits_scaling", 8.0), ("cohere", "logit_scale", 0.25), ("gemma2", "final_logit_softcapping", 0.5)],
)
def test_logits_are_scaled_and_capped_as_the_backbones_are(model_type, field, value):
    config = AutoConfig.for_model(model_type, **{**COMMON, **LLAMA_LIKE, field: value})
    backbone, token_ids = AutoModelForCausalLM.from_config(config).eval(), random_ids(2, 5)
    model = SllmForCausalLM.from_backbone(backbone, boundary_token_ids=BOUNDARIES, max_sentence_length=9)
    states = backbone.model(token_ids).last_hidden_state
    torch.testing.assert_close(model.compute_logits(states), backbone(token_ids).logits)


def test_what_enters_the_transformers_has_the_scale_of_the_token_embeddings():
    """Gemma scales embeddings as it looks them up, so the table alone does not tell."""
    for name in ("llama", "gemma3"):
        backbone = tiny_backbone(name)
        model = SllmForCausalLM.from_backbone(backbone, boundary_token_ids=BOUNDARIES, latent_size=256)
        expected = backbone.get_input_embeddings()(torch.arange(61)).pow(2).mean().sqrt()
        prefix = model.model.sentence_decoder.latent_prefix(torch.randn(500, 256)).pow(2).mean().sqrt()
        queries = model.model.sentence_encoder.latent_queries.weight.pow(2).mean().sqrt()
        assert 0.8 < prefix / expected < 1.25 and 0.8 < queries / expected < 1.25


@pytest.mark.parametrize("hidden_size", [32, 48])
def test_a_part_of_another_architecture_or_width_stays_random_and_works(tmp_path, hidden_size):
    decoder = AutoConfig.for_model(
        "gpt2", n_embd=hidden_size, n_layer=5, n_head=4, n_positions=256, vocab_size=61, bos_token_id=1, eos_token_id=2
    )
    model = tiny_sllm(sentence_decoder_config=decoder, decoder_layers=None)
    token_ids = random_ids(2, 20)
    logits = model(token_ids, labels=token_ids).logits
    cached = model(token_ids, use_cache=True).logits
    torch.testing.assert_close(cached, logits, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(SllmForCausalLM.from_pretrained(tmp_path)(token_ids).logits, logits)


def test_a_sentence_vae_begins_from_a_backbone_too():
    backbone = tiny_backbone()
    model = SentenceVaeModel.from_backbone(backbone, boundary_token_ids=BOUNDARIES, encoder_layers=1, decoder_layers=2)
    assert torch.equal(model.get_input_embeddings().weight, backbone.get_input_embeddings().weight)
    assert model.get_input_embeddings().weight is not backbone.get_input_embeddings().weight
    decoder = model.sentence_decoder.model.layers
    assert torch.equal(decoder[1].mlp.up_proj.weight, backbone.model.layers[2].mlp.up_proj.weight)


def test_a_backbone_in_bfloat16_keeps_its_rotary_positions_exact():
    model = SllmForCausalLM.from_backbone(tiny_backbone().to(torch.float32), boundary_token_ids=BOUNDARIES)
    backbone = tiny_backbone()
    for parameter in backbone.parameters():
        parameter.data = parameter.data.bfloat16()
    half = SllmForCausalLM.from_backbone(backbone, boundary_token_ids=BOUNDARIES)
    assert half.dtype == torch.bfloat16
    for (name, exact), buffer in zip(model.named_buffers(), half.buffers(), strict=True):
        assert torch.equal(exact, buffer), name


@pytest.fixture
def warnings(monkeypatch):
    """What was said of layers that were not copied."""
    said = []
    monkeypatch.setattr(backbone_loading.logger, "warning_once", said.append)
    return said


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_is_said_where_every_layer_was_copied(name, warnings):
    tiny_sllm(name)
    assert warnings == []


def test_layers_that_could_not_be_copied_are_named(warnings):
    gpt2 = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=256, vocab_size=61)
    tiny_sllm(sentence_decoder_config=gpt2, decoder_layers=None)
    assert len(warnings) == 1 and "sentence_decoder: a 'gpt2' model of 2 layers, all of it" in warnings[0]
    assert "sentence_encoder" not in warnings[0]


def test_of_a_layer_that_fits_in_part_the_rest_is_named(warnings):
    backbone = tiny_backbone()
    narrow = copy.deepcopy(backbone.config)
    narrow.num_hidden_layers, narrow.intermediate_size = 1, 40
    model = SllmForCausalLM.from_backbone(backbone, boundary_token_ids=BOUNDARIES, sentence_encoder_config=narrow)
    named = {f"sentence_encoder: layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert all(name in warnings[0] for name in named) and warnings[0].count("sentence_encoder") == 3
    own, given = model.model.sentence_encoder.model.layers[0], backbone.model.layers[0]
    assert torch.equal(own.self_attn.q_proj.weight, given.self_attn.q_proj.weight)


def test_nothing_is_said_of_layers_that_a_sentence_vae_gives(warnings):
    backbone = tiny_backbone()
    paper = {"boundary_token_ids": BOUNDARIES, "max_sentence_length": 9, "preset": "paper", "decoder_layers": 1}
    vae = SentenceVaeModel.from_backbone(backbone, **paper)
    assert len(warnings) == 1
    SllmForCausalLM.from_backbone(backbone, sentence_vae=vae, boundary_token_ids=BOUNDARIES)
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
        {"model_type": "lfm2", "layer_types": ["conv", "conv", "full_attention"]},
        {"model_type": "llama4_text", "no_rope_layers": [1, 1, 0], "layer_types": ["full_attention"] * 3},
        {"model_type": "falcon_h1"},
        {"model_type": "llama", "lists_of_tomorrow": ["a", "b", "c"]},
    ],
)
def test_every_list_with_an_entry_for_each_layer_follows_the_choice_of_layers(fields):
    config = AutoConfig.for_model(**{**COMMON, **LLAMA_LIKE, **fields, "eos_token_id": [2, 3, 4]})
    kept = keep_layers(config, [0, 2])
    assert kept.num_hidden_layers == 2 and kept.eos_token_id == [2, 3, 4]
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == 3 and name != "eos_token_id":
            assert getattr(kept, name) == [value[0], value[2]], name
    for name in ("layer_types", "lists_of_tomorrow"):
        if getattr(config, name, None):
            assert getattr(kept, name) == [getattr(config, name)[0], getattr(config, name)[2]]
    AutoConfig.for_model(**kept.to_dict())  # it is still a config that can be

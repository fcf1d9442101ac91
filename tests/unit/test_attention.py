"""Attention: each part's implementation is set as for any model, and the flash arguments say what the masks say."""

from collections import Counter

import pytest
import torch
from models import option_model, padded, random_ids, tiny_sllm

from hf_sllm.modeling.stream_attention import flash_attention_kwargs, padded_rows, visible
from hf_sllm.modeling.stream_layout import Stream, lay_out


def test_flash_arguments_bound_each_piece():
    arguments = flash_attention_kwargs(torch.tensor([3, 2, 2, 1]))
    assert arguments["cu_seq_lens_q"].tolist() == arguments["cu_seq_lens_k"].tolist() == [0, 3, 5, 7, 8]
    assert arguments["cu_seq_lens_q"].dtype == torch.int32
    assert arguments["max_length_q"] == arguments["max_length_k"] == 3


@pytest.mark.parametrize("causal", [True, False])
def test_flash_arguments_allow_what_the_mask_rule_allows(causal):
    lengths = torch.tensor([3, 2, 2, 1])
    bounds = flash_attention_kwargs(lengths)["cu_seq_lens_q"].tolist()
    allowed = torch.zeros(8, 8, dtype=torch.bool)
    for start, end in zip(bounds, bounds[1:], strict=False):
        block = torch.ones(end - start, end - start, dtype=torch.bool)
        allowed[start:end, start:end] = block.tril() if causal else block
    piece, nowhere = torch.repeat_interleave(lengths), torch.zeros(8, dtype=torch.long)
    stream = Stream(piece, torch.arange(8), nowhere, nowhere)
    queries, keys = stream.map(lambda values: values[:, None]), stream.map(lambda values: values[None])
    assert torch.equal(visible(queries, keys, causal, 0), allowed)


def positions_of(model, token_ids):
    """The decoder's stream of one text, which has a prefix before each sentence; the slots of its prefixes, `(J,
    prefix length)`, and which tokens close a sentence."""
    layout = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    length = model.config.prefix_length
    positions = lay_out(layout.mask, layout.scatter(layout.token_closes), length, restart=False)
    prefixes = positions.stream.prefix[0].nonzero().view(-1, length)
    return positions, prefixes, layout.token_closes.nonzero().squeeze(1)


def test_a_prefix_is_there_for_its_own_sentence_and_its_last_position_alone_looks_back():
    model, token_ids = tiny_sllm(num_latents=3), random_ids(1, 40)
    positions, prefixes, closing = positions_of(model, token_ids)
    stream = positions.stream.map(lambda values: values[0])
    sees = visible(stream.map(lambda values: values[:, None]), stream.map(lambda values: values[None]), True, 1000)
    prefix, tokens = prefixes[2], positions.token_slot[0]
    before, sentence = tokens[tokens < prefix[0]], torch.arange(int(prefix[0]), int(prefixes[3, 0]))
    assert [sees[slot].nonzero().squeeze(1).tolist() for slot in prefix[:2]] == [[prefix[0]], prefix[:2].tolist()]
    assert sees[prefix[2]].nonzero().squeeze(1).tolist() == [*before.tolist(), *prefix.tolist()]
    assert sees[sentence[-1]].nonzero().squeeze(1).tolist() == [*before.tolist(), *sentence.tolist()]


def test_the_last_of_a_prefix_is_the_token_before_as_well():
    model, token_ids = tiny_sllm(num_latents=3), random_ids(1, 40)
    positions, prefixes, closing = positions_of(model, token_ids)
    assert positions.token[0, prefixes[:, -1]].tolist() == [-1, *closing.tolist()]
    decoder, embeds = model.model.sentence_decoder, model.get_input_embeddings()(token_ids[0])
    latents = torch.randn(1, len(closing) + 1, 3, model.config.latent_size)
    with_token, without = (decoder.embed(latents, embeds, positions, repeats)[0] for repeats in (True, False))
    expected = torch.zeros_like(without)
    expected[0, prefixes[1:, -1]] = embeds[closing]
    torch.testing.assert_close(with_token - without, expected)


def test_the_flash_call_gets_these_arguments_and_no_mask(monkeypatch):
    """What a GPU would be asked, without one: encoder bidirectional, decoder causal, each in one packed row."""
    model, token_ids, calls = option_model("sentence_alone"), random_ids(2, 30), {}
    for name in ("sentence_encoder", "sentence_decoder"):
        inner = getattr(model.model, name).model
        monkeypatch.setattr(inner.config, "_attn_implementation_internal", "flash_attention_2")

        def record(name=name, **kwargs):
            calls[name] = kwargs
            states = kwargs["inputs_embeds"]
            return type("Output", (), {"last_hidden_state": states})

        monkeypatch.setattr(inner, "forward", record)
    model(token_ids)
    for name, causal in (("sentence_encoder", False), ("sentence_decoder", True)):
        call = calls[name]
        assert call["inputs_embeds"].shape[0] == 1 and "attention_mask" not in call
        assert call["is_causal"] is causal and call["use_cache"] is False
        assert call["cu_seq_lens_q"][-1] == call["inputs_embeds"].shape[1] == call["position_ids"].shape[1]
    config, layout = model.config, model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    closed = torch.bincount(layout.token_sentence)[layout.sentence_closed]
    assert calls["sentence_encoder"]["cu_seq_lens_q"].diff().tolist() == (closed + config.num_latents).tolist()


def test_padded_rows_hold_each_position_once_in_order_and_cut_no_piece():
    lengths = torch.tensor([5, 1, 10, 8, 9, 8, 7, 3] * 9)
    rows = padded_rows(lengths)
    assert rows[rows >= 0].tolist() == list(range(int(lengths.sum())))
    assert set((lengths.cumsum(0) - lengths).tolist()) >= set(rows[:, 0].tolist())
    assert len(rows) < len(lengths)
    assert (rows >= 0).float().mean() > 0.75


ALL_LOSSES = {
    **{f"{name}_weight": 0.5 for name in ("reconstruction", "bag_of_words", "next_latent", "kl")},
    "stop_head": True,
}


@pytest.mark.parametrize("skip_logits", [True, False])
@pytest.mark.parametrize("options", [{}, {"preset": "paper", "decoder_layers": 1}])
def test_every_module_is_called_as_often_with_closed_sentences_as_without(options, skip_logits):
    """Also where the auxiliary losses call the decoder and the LM head again; and each call has its backward pass."""
    model, calls = tiny_sllm(**options, **ALL_LOSSES).train(), Counter()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
        if any(True for _ in module.parameters(recurse=False)):
            module.register_full_backward_pre_hook(lambda *_, name=name: calls.update([f"{name}, backward"]))
    found = []
    for token_ids in ([20, 5, 20, 20, 5, *[20] * 9, 5], [20, 21]):
        calls.clear()
        ids = torch.tensor([token_ids])
        output = model(ids, labels=ids, skip_logits=skip_logits)
        assert output.losses.keys() >= {"reconstruction", "bag_of_words", "next_latent", "kl", "stop"}
        assert output.losses["reconstruction"].isfinite()
        output.loss.backward()
        found.append(dict(calls))
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        model.zero_grad()
    assert found[0] == found[1]
    assert found[0]["model.sentence_decoder"] == 2 and found[0]["model.sentence_encoder"] == 1


@pytest.mark.parametrize("option", ["default", "sentence_alone", "paper"])
def test_each_part_is_called_once_whatever_the_lengths_of_sentences(option, monkeypatch):
    """Where weights are sharded over processes, each call is a round of communication that all have to make."""
    model, calls = option_model(option).train(), []
    for name in ("language_model", "sentence_encoder.model", "sentence_decoder.model"):
        part = model.model.get_submodule(name)
        part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    texts = {"many lengths": [20, 5, 20, 20, 5, *[20] * 9, 5], "no closed sentence": [20, 21]}
    for token_ids in texts.values():
        calls.clear()
        model(torch.tensor([token_ids]), labels=torch.tensor([token_ids])).loss.backward()
        assert sorted(calls) == ["language_model", "sentence_decoder.model", "sentence_encoder.model"]
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        model.zero_grad()


@pytest.mark.parametrize("part", ["text_config", "sentence_encoder_config", "sentence_decoder_config"])
def test_each_part_has_its_own_implementation(part):
    model, token_ids = tiny_sllm(), random_ids(2, 30)
    expected = model(token_ids).logits
    model.set_attn_implementation({part: "eager"})
    parts = ("text_config", "sentence_encoder_config", "sentence_decoder_config")
    set_to = {name: getattr(model.config, name)._attn_implementation for name in parts}
    assert set_to == {name: "eager" if name == part else "sdpa" for name in parts}
    modules = (model.model.language_model, model.model.sentence_encoder.model, model.model.sentence_decoder.model)
    assert [module.config._attn_implementation for module in modules] == list(set_to.values())
    torch.testing.assert_close(model(token_ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_implementation_set_for_the_whole_reaches_every_part(implementation):
    model = tiny_sllm()
    model.set_attn_implementation(implementation)
    layers = [module for module in model.modules() if type(module).__name__ == "LlamaAttention"]
    assert len(layers) == 3 + 2 + 2
    assert {layer.config._attn_implementation for layer in layers} == {implementation}


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def test_flex_attention_gives_the_logits_of_sdpa():
    """On CPU it runs forward only; its kernel would take a minute to compile."""
    for option in ("default", "sentence_alone"):
        model, (token_ids, mask) = option_model(option), padded([random_ids(1, n)[0] for n in (30, 11)], "left")
        expected = model(token_ids, mask).logits[mask.bool()]
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(token_ids, mask).logits[mask.bool()], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("option", ["default", "sentence_alone", "paper"])
@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
@torch.no_grad()
def test_on_a_gpu_every_implementation_gives_the_logits_of_sdpa(implementation, option):
    if implementation == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = option_model(option).to("cuda", torch.bfloat16)
    token_ids = random_ids(3, 40).to("cuda")
    expected = model(token_ids).logits
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(token_ids).logits, expected, rtol=0.05, atol=0.05)
    cached = model(token_ids, use_cache=True)
    torch.testing.assert_close(cached.logits, expected, rtol=0.05, atol=0.05)

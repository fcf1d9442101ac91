"""The memory: what lies beyond the decoder's window reaches every token, at no cost to how a model begins."""

import pytest
import torch
from models import option_model, padded, random_ids, tiny_sllm

from hf_sllm.evaluation.memory import changed_memory, of_another_text, of_newest_sentence
from hf_sllm.modeling import SllmCache, SllmConfig, SllmForCausalLM
from hf_sllm.modeling.latent_memory import normalised
from hf_sllm.modeling.stream_layout import lay_out, said_so_far


@torch.no_grad()
def test_a_model_begins_as_it_would_without_a_memory():
    plain, token_ids = tiny_sllm(), random_ids(2, 40)
    model = tiny_sllm(memory={})
    model.load_state_dict(plain.state_dict(), strict=False)
    for layer in model.model.memory.layers:
        layer.read_output.weight.zero_()
    assert torch.equal(model(token_ids).logits, plain(token_ids).logits)


def test_the_maps_into_the_states_begin_at_zero_and_learn():
    token_ids = random_ids(2, 40)
    model = SllmForCausalLM(SllmConfig(**tiny_sllm(memory={}).config.to_dict())).train()
    outputs = [layer.read_output for layer in model.model.memory.layers]
    assert all(linear.weight.eq(0).all() for linear in outputs)
    model(token_ids, labels=token_ids).loss.backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in outputs)


def test_what_a_sentence_has_said_is_the_sum_of_its_own_tokens():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1]]).bool()
    closes = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]).bool() & mask
    embeds = torch.randn(2, 6, 4)
    positions = lay_out(mask, closes, 3, restart=False)
    of_stream = torch.cat([embeds[mask], torch.zeros(1, 4)])[positions.token]
    said = said_so_far(of_stream, positions.stream)
    for row in range(2):
        expected = torch.zeros(4)
        for column in mask[row].nonzero()[:, 0].tolist():
            expected = expected + embeds[row, column]
            torch.testing.assert_close(said[row, positions.token_slot[row, column]], expected)
            expected = expected * ~closes[row, column]
            torch.testing.assert_close(said[row, positions.output_slot[row, column]], expected)


@torch.no_grad()
def test_a_new_model_looks_first_at_the_sentence_that_shares_words_with_its_own():
    config = tiny_sllm(pooling="parts", num_latents=2, memory={"num_heads": 1}).config
    model = SllmForCausalLM(SllmConfig(**config.to_dict())).eval()
    sentences = torch.arange(11, 35).view(6, 4)  # they share no tokens
    embeds = model.get_input_embeddings()(sentences)
    latents, _ = model.model.sentence_encoder(embeds.flatten(0, 1), torch.arange(6).repeat_interleave(4))
    layer = model.model.memory.layers[0]
    keys, _ = layer.write(latents).chunk(2, -1)  # (6, 2, width)
    said = normalised(embeds[:, :3].sum(1))
    query = layer.query(torch.cat([torch.zeros_like(said), said], -1))
    scores = torch.einsum("qw,sjw->qsj", query, keys).amax(-1)
    assert scores.argmax(-1).tolist() == list(range(6))


def test_a_token_sees_what_was_said_long_before_its_window_by_the_memory_alone():
    model, token_ids = option_model("memory"), random_ids(1, 60)
    model.model.latent_output.weight.data.zero_()  # nothing comes by the backbone
    layout = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    assert layout.token_sentence[-1] > 4
    embeds = model.get_input_embeddings()(token_ids).detach().requires_grad_()
    model(token_ids, inputs_embeds=embeds).logits[0, -1].square().sum().backward()
    seen = embeds.grad[0].abs().sum(-1) > 0
    far = layout.token_sentence < layout.token_sentence[-1] - 2
    assert seen[far & (layout.token_sentence > 0)].all()


@torch.no_grad()
def test_the_controls_change_what_is_read_and_nothing_else():
    model = option_model("memory")
    token_ids, mask = padded([random_ids(1, length, seed=length)[0] for length in (60, 50)], "right")
    own = model(token_ids, mask).logits
    layout = model.model.segmenter.layout(token_ids, mask.bool())
    first = layout.scatter(layout.token_sentence)[0] == 0  # before anything is in the memory
    for change in (of_another_text, of_newest_sentence):
        with changed_memory(model, change):
            changed = model(token_ids, mask).logits
        assert changed.shape == own.shape and not torch.allclose(changed, own)
        if change is of_newest_sentence:
            same = first.nonzero().squeeze(1)[:-1]
            torch.testing.assert_close(changed[0, same], own[0, same], rtol=1e-5, atol=1e-5)
    assert torch.equal(model(token_ids, mask).logits, own)


@torch.no_grad()
def test_the_newest_sentence_alone_is_all_there_is_in_a_text_of_two():
    model = option_model("memory")
    token_ids = torch.tensor([[20, 21, 5, 22, 23]])
    own = model(token_ids).logits
    with changed_memory(model, of_newest_sentence):
        torch.testing.assert_close(model(token_ids).logits, own, rtol=1e-5, atol=1e-5)


def test_who_reads_on_with_gradients_may_have_let_a_cache_be_written_to():
    model, token_ids = option_model("memory"), random_ids(2, 12)
    cache = SllmCache(model.config)
    model.generate(token_ids, past_key_values=cache, max_sentences=3, max_new_tokens=12)
    model(random_ids(2, 3, seed=5), past_key_values=cache, use_cache=True).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.model.memory.layers[0].query.parameters())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_memory_that_was_written_under_autocast_is_read_without_it(dtype):
    model, token_ids = option_model("memory"), random_ids(2, 30)
    with torch.autocast("cpu", dtype):
        cache = model(token_ids, use_cache=True).past_key_values
    logits = model(token_ids[:, :5], past_key_values=cache, use_cache=True).logits
    whole = model(torch.cat([token_ids, token_ids[:, :5]], 1)).logits[:, -5:]
    torch.testing.assert_close(logits, whole, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "memory, message",
    [
        ({"layers": 1}, "`memory` has layers: it has num_layers, num_heads"),
        ({"num_layers": 0}, "`memory.num_layers` is 0: it must be a whole number of at least 1"),
        ({"num_heads": 5}, "`memory.num_heads` is 5: it must divide the model's width, 32"),
    ],
)
def test_a_memory_that_cannot_be_is_refused(memory, message):
    with pytest.raises(ValueError, match=message):
        tiny_sllm(memory=memory)

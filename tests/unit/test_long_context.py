"""A backbone that was made for 2,048 positions reads 32,768 tokens: it has one position for each sentence."""

import warnings

import pytest
import torch
from models import VOCAB_SIZE, tiny_backbone
from transformers.utils import logging

from hf_sllm import SllmForCausalLM
from hf_sllm.benchmark.memory import PeakMemory, bytes_held

LENGTH, SENTENCE = 32768, 17


def long_text(length: int = LENGTH) -> torch.Tensor:
    token_ids = torch.randint(11, VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(0))
    token_ids[:, SENTENCE - 1 :: SENTENCE] = 5
    return token_ids


def reader(backbone: str, **options) -> SllmForCausalLM:
    """An SLLM around a backbone of 2,048 positions."""
    most = "n_positions" if backbone == "gpt2" else "max_position_embeddings"
    sizes = {"vocab_size": VOCAB_SIZE, most: 2048}
    return SllmForCausalLM.from_backbone(
        tiny_backbone(backbone, **sizes), boundary_token_ids=[5], decoder_layers=2, **options
    ).eval()


@pytest.fixture
def no_warning(capsys):
    """Whatever is warned of, by either means, fails the test."""
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    logging.set_verbosity(before)
    assert capsys.readouterr().err == ""


# Where positions are learned, a decoder that counts them through the text has too few.
@pytest.mark.parametrize("backbone, options", [("llama", {}), ("gpt2", {"decoder_context_length": 0})])
def test_text_of_many_times_the_backbones_positions_goes_on_alike_however_it_is_read(backbone, options, no_warning):
    model, prompt = reader(backbone, **options), long_text()
    kept = {"return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
    whole, chunked = (
        model.generate(prompt, max_new_tokens=10, max_length=None, do_sample=False, **kept, **chunk)
        for chunk in ({}, {"prefill_chunk_size": 1000})
    )
    assert whole.past_key_values.language_model.get_seq_length() < 2048
    assert torch.equal(whole.sequences, chunked.sequences)
    for one, other in zip(whole.logits, chunked.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_prefill_works_on_a_part_of_a_long_text_at_a_time():
    model, sizes = reader("llama"), []
    for module in (model.get_input_embeddings(), model.model.sentence_encoder.model):
        module.register_forward_hook(lambda module, args, output: sizes.append(positions(output)))

    def positions(output) -> int:
        return (output if isinstance(output, torch.Tensor) else output.last_hidden_state)[..., 0].numel()

    with torch.no_grad():
        model(long_text(), use_cache=True, logits_to_keep=1)
    assert sum(sizes) >= LENGTH and max(sizes) < 6000


def test_what_a_prefill_takes_beside_its_cache_grows_by_little_more_than_the_ids():
    model, beside = reader("llama"), []
    for length in (LENGTH // 2, LENGTH):
        with torch.no_grad(), PeakMemory(model, torch.device("cpu")) as peak:
            cache = model(long_text(length), use_cache=True, logits_to_keep=1).past_key_values
        beside.append(peak.bytes - bytes_held(cache))
    # The token embeddings alone would be 128 bytes for each token, what an encoder's layer holds of it 500.
    assert (beside[1] - beside[0]) / (LENGTH // 2) < 250

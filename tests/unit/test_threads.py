"""A forward pass changes nothing that others use: threads that share a model each get what they would get alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import random_ids, tiny_sllm


def test_a_loss_in_chunks_beside_a_forward_pass_disturbs_neither():
    model, token_ids = tiny_sllm(), random_ids(1, 30)
    with torch.no_grad():
        calls = [
            lambda: model(token_ids, labels=token_ids, skip_logits=True).loss,
            lambda: model(token_ids).logits,
        ]
        alone = [call() for call in calls]
    both_are_in = threading.Barrier(2, timeout=30)

    def wait_for_the_other(*_):
        both_are_in.wait()

    model.lm_head.register_forward_pre_hook(wait_for_the_other)

    def run(call):
        with torch.no_grad():
            return call()

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, calls))
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_texts_written_side_by_side_are_those_written_alone():
    model = tiny_sllm()

    def write(seed: int) -> list[int]:
        return model.generate(
            random_ids(1, 20 + seed, seed), max_sentences=6, max_new_tokens=40, do_sample=False
        ).tolist()

    alone = [write(seed) for seed in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(1, 5))) == alone


@pytest.mark.parametrize("implementation", ["flex_attention", "sdpa", "eager"])
def test_no_forward_pass_changes_an_attention_implementation(implementation):
    """Also where the cache needs a mask that the kernel does not take."""
    model, seen = tiny_sllm(), []
    cache = model(random_ids(1, 12), use_cache=True).past_key_values
    model.set_attn_implementation({"sentence_decoder_config": implementation})
    model.model.sentence_decoder.model.layers[0].register_forward_pre_hook(
        lambda module, _: seen.append(module.self_attn.config._attn_implementation)
    )
    model(random_ids(1, 5, seed=3), past_key_values=cache)
    assert seen == [implementation]

"""A leak shows in what is learned: nothing can be predicted of independent tokens, and no score beats the floor."""

import math

import pytest
import torch
from models import option_model
from torch.nn import functional as F

from hf_sllm.data import load_documents
from hf_sllm.evaluation import bits_per_byte, entropy_floor
from hf_sllm.modeling import SllmForCausalLM
from hf_sllm.modeling.stream_layout import pad_rows

FIRST, LAST = 3, 61  # uniform over the ids without special tokens
ENTROPY = math.log(LAST - FIRST)


@pytest.mark.parametrize("option", ["default", "sentence_alone", "paper"])
def test_nothing_is_learned_of_independent_tokens(option):
    """Trained on fresh tokens until it stops improving, the loss stays at the entropy.

    A leak of even one token in ten would take it a tenth below; `test_the_test_sees_a_leak` shows that one is seen.
    """
    assert train_on_noise(option_model(option)) >= ENTROPY - 0.005


def test_the_test_sees_a_leak(monkeypatch):
    """The same training, with the backbone's prediction replaced by the latents of the sentence to be predicted."""
    model = option_model("sentence_alone")
    forward = model.model._predict

    def leaking(latents, layout, cache):
        predicted, *others = forward(latents, layout, cache)
        # Prediction j of a row gets the latents of sentence j itself, where that sentence is closed.
        own, _ = pad_rows(latents, layout.sentence_row[layout.sentence_closed], len(predicted))
        return predicted + F.pad(own, (0, 0, 0, 0, 0, 1)), *others

    monkeypatch.setattr(model.model, "_predict", leaking)
    assert train_on_noise(model) < ENTROPY - 0.05


def train_on_noise(model) -> float:
    """The lowest mean loss of 40 steps in a row, in nats, of training until 120 steps bring no better one."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=2e-3)
    model.config.focal_gamma, model.config.stop_weight = 0.0, 0.0
    losses, best, best_step = [], math.inf, 0
    while len(losses) - best_step < 120 and best > ENTROPY - 0.1:
        token_ids = torch.randint(FIRST, LAST, (16, 32))
        outputs = model(token_ids, labels=token_ids)
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(outputs.losses["next_sentence"].item())
        recent = sum(losses[-40:]) / 40
        if len(losses) >= 40 and recent < best - 0.002:
            best, best_step = recent, len(losses)
    return sum(losses[-40:]) / 40


def test_no_model_scores_below_the_floor(shared):
    """The floor is the entropy of the sampler that wrote the stories; nearest to it is that sampler itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = shared / "models" / "stories260K"
    documents = load_documents(shared / "data" / "stories.valid.jsonl.gz", limit=60)
    tokenizer, floor = AutoTokenizer.from_pretrained(path), entropy_floor(documents)
    models = [AutoModelForCausalLM.from_pretrained(path), SllmForCausalLM.from_backbone(path, tokenizer)]
    for model in models:
        assert bits_per_byte(model, tokenizer, documents, progress=False).bits_per_byte > floor

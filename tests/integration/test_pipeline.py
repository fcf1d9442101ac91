"""Texts for a whole dataset: `pipeline("text-generation")` in batches."""

from importlib.resources import files

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

CHECKPOINT = str(files("hf_sllm") / "checkpoints" / "sllm-stories")
PROMPTS = Dataset.from_dict(
    {"text": ["Once", "Tom and Lily saw a big dog. The dog", "One day", "The owl was sad. It", "A frog"]}
)


@pytest.fixture(scope="module")
def writer():
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    return pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize(("max_sentences", "side"), [(None, "left"), (3, "left"), (3, "right")])
def test_batches_over_a_dataset_write_what_single_texts_get(writer, monkeypatch, max_sentences, side):
    """Rows of a batch differ in length, close their sentences at different times, and end at different times."""
    monkeypatch.setattr(writer.tokenizer, "padding_side", side)
    settings = {"prefix": "<s>", "do_sample": False, "max_new_tokens": 40, "max_sentences": max_sentences}
    batched = [found[0]["generated_text"] for found in writer(KeyDataset(PROMPTS, "text"), batch_size=3, **settings)]
    alone = [writer(text, **settings)[0]["generated_text"] for text in PROMPTS["text"]]
    assert batched == alone
    assert all(text.startswith(prompt) for text, prompt in zip(batched, PROMPTS["text"], strict=True))
    if max_sentences is not None:
        assert len({len(text) for text in batched}) > 1


def test_what_a_pipeline_samples_in_batches_ends_with_its_sentences(writer):
    """At most so many: the prompt's open sentence is the first."""
    found = writer(KeyDataset(PROMPTS, "text"), batch_size=5, prefix="<s>", max_sentences=2, return_full_text=False)
    texts = [text[0]["generated_text"] for text in found]
    assert all(1 <= sum(text.count(mark) for mark in ".!?") <= 2 for text in texts)

"""How well latents are foretold: what knows all scores full marks, what knows nothing scores chance."""

import functools
import io
import math

import pytest
import torch
from models import BOUNDARIES
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from hf_sllm import SllmForCausalLM
from hf_sllm.data import train_tokenizer
from hf_sllm.evaluation import evaluate
from hf_sllm.evaluation.latent_prediction import _contrastive, _paraphrase, coherence, latent_prediction
from hf_sllm.evaluation.tables import print_evaluation

WORDS = ["goat", "hat", "key", "moon", "pear", "rose", "ship", "tree", "wind", "yak"]
DOCUMENTS = [
    {"text": " ".join(f"The {WORDS[(3 * row + n * n) % 10]} saw a {WORDS[(row + 7 * n) % 10]}." for n in range(5))}
    for row in range(12)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row["text"] for row in DOCUMENTS], 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.5,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return SllmForCausalLM.from_backbone(
        AutoModelForCausalLM.from_config(config), tokenizer, encoder_layers=1, decoder_layers=1,
        max_sentence_length=16, latent_predictor={"type": "flow", "num_layers": 1, "steps": 2},
    ).eval()  # fmt: skip


def measured(model, tokenizer, **options):
    return latent_prediction(model, tokenizer, DOCUMENTS, batch_size=5, progress=False, **options)


def test_what_knows_the_sentence_is_never_mistaken_and_comes_as_near_as_writing_lets_it(model, tokenizer, monkeypatch):
    monkeypatch.setattr(
        model, "predict_next_latents", lambda latents, mask, cache: torch.cat([latents, latents[:, -1:]], 1)
    )
    found = measured(model, tokenizer)
    told = found.ways[0]
    assert (told.way, told.distance, told.round_trip) == ("predicted", 0, found.own_round_trip)
    assert told.contrastive > 0.9  # of sentences that are the same in two documents, each counts half
    assert found.paraphrase == pytest.approx(1)


def test_what_knows_nothing_is_at_chance(model, tokenizer):
    found = measured(model, tokenizer)
    assert found.sentences == 5 * 12 + 12 and found.written == found.sentences  # the end of a text is a sentence
    for way in found.ways[:2]:
        assert abs(way.contrastive - 0.5) < 4 * way.contrastive_error + 0.1
    distances = [way.distance for way in found.ways]
    assert distances[1] == min(distances)  # the mean, which is why a low distance is no merit


def test_documents_may_come_in_any_batches(model, tokenizer):
    one, other = measured(model, tokenizer), latent_prediction(model, tokenizer, DOCUMENTS, 12, progress=False)
    assert one.ways[0].distance == pytest.approx(other.ways[0].distance, rel=1e-4)
    assert measured(model, tokenizer, seed=100).ways[0].distance != pytest.approx(one.ways[0].distance, rel=1e-4)


class Chain(torch.nn.Module):
    """A judge to which a word is likely, 0.9, after itself in the sentence before, and each of the ten is at first."""

    def __init__(self, tokenizer):
        super().__init__()
        self.ids = [tokenizer(f" {word}.")["input_ids"][0] for word in WORDS]
        self.device, self.config = torch.device("cpu"), AutoConfig.for_model("llama", vocab_size=len(tokenizer))

    def forward(self, input_ids, **kwargs):
        logits = torch.full((*input_ids.shape, self.config.vocab_size), -30.0)
        logits[..., self.ids] = math.log(0.1)
        for row, ids in enumerate(input_ids.tolist()):
            for index, token in enumerate(ids):
                if token in self.ids:  # then the full stop, and after that the word again
                    logits[row, index + 1 :, self.ids] = math.log(0.1 / 9)
                    logits[row, index + 1 :, token] = math.log(0.9)
                    logits[row, index] = torch.eye(self.config.vocab_size)[ids[index + 1 : index + 2] or 0] * 60
        return CausalLMOutput(logits=logits)


def test_coherence_is_what_the_sentences_before_are_worth(tokenizer):
    tokenizer = train_tokenizer([f" {word}." for word in WORDS] * 20, 300)
    judge = Chain(tokenizer)
    assert all(len(tokenizer(f" {word}.")["input_ids"]) == 2 for word in WORDS)
    texts, number = [f" {word}." for word in WORDS for _ in range(3)], [row for row in range(10) for _ in range(3)]
    judged = functools.partial(coherence, judge, tokenizer, texts, number=number, progress=False)
    true, error = judged(texts)
    assert true == pytest.approx(math.log(9) / 2, abs=1e-3) and error == pytest.approx(0, abs=1e-3)
    of_others = texts[3:] + texts[:3]
    assert judged(of_others)[0] == pytest.approx(-math.log(9) / 2, abs=1e-3)
    assert judged(["", *texts[1:]])[0] == true  # what begins a text has nothing before it
    with pytest.raises(ValueError, match="there is nothing to judge"):
        judged([""])


def test_others_are_those_of_other_documents():
    own = torch.tensor([[0.0], [1.0], [5.0]])
    share, _ = _contrastive(torch.tensor([[0.4], [0.4], [3.0]]), own, torch.tensor([0, 0, 1]))
    assert share == pytest.approx((1 + 1 + 0.75) / 3)  # the last lies as far from 1 as from 5, and further from 0


def test_a_prediction_that_repeats_what_was_said_is_above_one():
    own = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.6, 0.8]])
    number = torch.tensor([0, 0, 1, 1])
    assert _paraphrase(own[[0, 0, 2, 2]], own, number) == pytest.approx(1 / 0.6)
    assert _paraphrase(own, own, number) == pytest.approx(1)


def test_a_decoder_that_never_read_encoded_latents_is_refused(tokenizer):
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    plain = SllmForCausalLM.from_backbone(
        AutoModelForCausalLM.from_config(config), boundary_token_ids=BOUNDARIES, encoder_layers=1, decoder_layers=1
    )
    with pytest.raises(ValueError, match="never read encoded latents"):
        measured(plain, tokenizer)


def test_it_is_a_measure_of_the_command(model, tokenizer, tmp_path):
    from datasets import Dataset

    documents = Dataset.from_list(DOCUMENTS)
    model.save_pretrained(tmp_path / "sllm")
    tokenizer.save_pretrained(tmp_path / "sllm")
    judge = AutoModelForCausalLM.from_config(model.config.text_config)
    judge.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    measured = functools.partial(evaluate, documents=documents, data=["x"], measures=["latent_prediction"])
    found = measured(str(tmp_path / "sllm"), against=str(tmp_path / "judge"), progress=False)
    assert not found.sides[0].failures
    figures = found.sides[0].figures["latent_prediction"]
    assert None not in (figures.own_coherence, *(way.coherence for way in figures.ways))
    shown = Console(record=True, width=120, file=io.StringIO())
    print_evaluation(found, shown)
    printed = shown.export_text()
    assert "the sentence before: told from others" in printed
    assert "samples the latents of sentences: its bits are of one sample" in " ".join(printed.split())
    assert f"{found.sides[0].figures['latent_prediction'].ways[0].contrastive:.1%}" in printed

"""What is said about context is what is known of models that use all of it, or none."""

import math
import re

import pytest
import torch
from models import tiny_backbone, tiny_sllm
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from hf_sllm.data import sentence_rule, train_tokenizer
from hf_sllm.evaluation import context
from hf_sllm.evaluation.context import QUESTIONS, context_use, needle
from hf_sllm.evaluation.sentences import segment_documents, sentences_of

DOCUMENTS = [
    {"text": "A goat ate the hat. Où est la clé? Here it is!\nThank you. It was late. We slept."},
    {"text": "It rained all day. The cow saw a red boat. We went home. We had some soup. It was good. We slept."},
    {"text": "No."},
]
ASKED = [f"{opening} {word}. {opening}" for opening, words in QUESTIONS for word in words]


class Echo(PreTrainedModel):
    """Finds the tokens that it has read `likelier` times as likely as the others, and each of these equally likely."""

    config_class = PreTrainedConfig

    def __init__(self, vocab_size: int, likelier: float):
        super().__init__(PreTrainedConfig(vocab_size=vocab_size))
        self.likelier = likelier
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask, use_cache=None):
        read = torch.nn.functional.one_hot(input_ids, self.config.vocab_size).cumsum(1) > 0
        return CausalLMOutput(logits=read * math.log(self.likelier))


@pytest.fixture(scope="module")
def tokenizer():
    # Each word of the questions often enough to be one token.
    return train_tokenizer([row["text"] for row in DOCUMENTS] + ASKED, 600)


@pytest.fixture(scope="module")
def rule(tokenizer):
    return sentence_rule(tokenizer)


def test_a_model_without_context_gains_nothing_and_costs_what_it_costs(tokenizer, rule):
    model = Echo(len(tokenizer), 1.0)
    found = context_use(model, tokenizer, DOCUMENTS, rule, (0, 2), targets=4, progress=False)
    expected = found.tokens * math.log2(len(tokenizer)) / found.bytes
    assert found.bits_per_byte == pytest.approx((expected, expected))
    assert found.gains == pytest.approx((0.0, 0.0), abs=1e-9)
    assert found.gain_standard_errors == pytest.approx((0.0, 0.0), abs=1e-9)


def test_context_that_says_what_follows_is_a_gain(tokenizer, rule):
    documents = [{"text": "We slept. The cow ate. We slept. The cow ate. We slept. The cow ate."}] * 2
    model = Echo(len(tokenizer), 100.0)
    found = context_use(model, tokenizer, documents, rule, (1, 2), targets=4, progress=False)
    assert found.gains[1] > 2 * found.gain_standard_errors[1] > 0
    assert found.bits_per_byte[0] - found.bits_per_byte[1] == pytest.approx(found.gains[1])


def test_the_same_targets_are_scored_after_the_sentences_before_them(tokenizer, rule, monkeypatch):
    pairs = []

    def note(model, tokenizer, given, *rest):
        pairs.extend(given)
        return [1.0] * len(given)

    monkeypatch.setattr(context, "continuation_nats", note)
    found = context_use(None, tokenizer, DOCUMENTS[:1], rule, (0, 1, 4), targets=2, progress=False)
    assert found.targets == 2 and found.left_out == ()
    for index, (before, target) in enumerate(pairs):
        assert before[0] == tokenizer.bos_token_id
        assert target == pairs[index % 2][1]
        assert len(sentences_of(before[1:], rule)) == (0, 1, 4)[index // 2]
        assert tokenizer.decode(before[1:] + target) in DOCUMENTS[0]["text"]


def test_bytes_are_those_of_the_targets_in_utf8(tokenizer, rule):
    (document, *_) = segment_documents(DOCUMENTS, tokenizer, rule)
    texts = [document.text_of(sentence) for sentence in document.sentences]
    assert "".join(texts) == DOCUMENTS[0]["text"]
    model = Echo(len(tokenizer), 1.0)
    found = context_use(model, tokenizer, DOCUMENTS[:1], rule, (0,), targets=len(texts), progress=False)
    assert found.bytes == len(DOCUMENTS[0]["text"].encode())
    assert found.tokens == len(document.ids)


def test_too_much_context_is_left_out_and_told(tokenizer, rule):
    model = Echo(len(tokenizer), 1.0)
    found = context_use(model, tokenizer, DOCUMENTS, rule, (0, 3, 5, 9), targets=3, progress=False)
    assert (found.sentences, found.left_out, found.targets) == ((0, 3), (5, 9), 3)
    with pytest.raises(ValueError, match="fewer than 3 sentences with 9 or more before them"):
        context_use(model, tokenizer, DOCUMENTS, rule, (9,), targets=3, progress=False)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("make", [tiny_backbone, tiny_sllm])
def test_continuations_cost_what_the_model_says_of_each_alone(make, batch_size):
    model = make()
    pairs = [([1, 11, 5, 12], [13, 14, 6]), ([1], [15]), ([1, 11, 5, 12], [16]), ([1, 11, 5, 12], [17])]

    class Tokenizer:
        eos_token_id = 2

    found = context.continuation_nats(model, Tokenizer(), pairs, batch_size, "", False)
    for nats, (before, after) in zip(found, pairs, strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        places = range(len(before) - 1, len(before) + len(after) - 1)
        expected = -sum(scores[place, token].item() for place, token in zip(places, after, strict=True))
        assert nats == pytest.approx(expected, rel=1e-4)


def test_more_context_than_the_model_reads_is_refused(tokenizer, rule):
    model = tiny_backbone(vocab_size=len(tokenizer), max_position_embeddings=8)
    with pytest.raises(ValueError, match="a context has .* tokens, and the model reads 8 at once"):
        context_use(model, tokenizer, DOCUMENTS, rule, (5,), targets=2, progress=False)


def test_who_remembers_all_knows_every_fact(tokenizer, rule):
    model = Echo(len(tokenizer), 1e6)
    found = needle(model, tokenizer, DOCUMENTS, rule, (0, 3), trials=32, progress=False)
    assert found.accuracy == (1.0, 1.0)
    assert found.standard_errors == (0.0, 0.0)
    assert found.probability == pytest.approx((1.0, 1.0), abs=1e-4)


class Forgetful(Echo):
    """Has its own fixed opinion of each token, and reads nothing."""

    def forward(self, input_ids, attention_mask, use_cache=None):
        opinion = torch.randn(self.config.vocab_size, generator=torch.Generator().manual_seed(0))
        return CausalLMOutput(logits=opinion.expand(*input_ids.shape, -1))


@pytest.mark.parametrize("candidates", [2, 4])
def test_who_remembers_nothing_gets_chance_exactly(candidates, tokenizer, rule):
    for model in (Forgetful(len(tokenizer), 1.0), Echo(len(tokenizer), 1.0)):
        found = needle(model, tokenizer, DOCUMENTS, rule, (0, 3), trials=16, candidates=candidates, progress=False)
        assert found.accuracy == (found.chance, found.chance) == (1 / candidates, 1 / candidates)
        assert found.probability == pytest.approx((found.chance, found.chance))


def test_between_fact_and_question_are_so_many_sentences_without_the_candidates(tokenizer, rule, monkeypatch):
    contexts = []
    original = context._answer_pairs

    def spy(tokenizer, text, answers):
        contexts.append((text, answers))
        return original(tokenizer, text, answers)

    monkeypatch.setattr(context, "_answer_pairs", spy)
    model = Echo(len(tokenizer), 1.0)
    needle(model, tokenizer, DOCUMENTS, rule, (0, 2), trials=32, progress=False)
    assert len(contexts) == 64
    for index, (text, answers) in enumerate(contexts):
        # Four facts without a sentence between, then the same with two.
        stated, distance = answers[index % 4], (0, 2)[index // 4 % 2]
        opening = next(opening for opening, _ in QUESTIONS if text.startswith(opening))
        assert text.startswith(f"{opening}{stated}. ") and text.endswith(f" {opening}")
        between = text[len(opening) + len(stated) + 1 : -len(opening)]
        assert len(re.findall("[.!?]", between)) == distance
        assert not {answer.strip() for answer in answers} & set(re.findall(r"\w+", between))


def test_too_few_sentences_for_the_distance_are_refused(tokenizer, rule):
    with pytest.raises(ValueError, match="largest of `distances` is 99"):
        needle(Echo(len(tokenizer), 1.0), tokenizer, DOCUMENTS, rule, (99,), progress=False)


@pytest.mark.parametrize("documents, positions, far", [(400, 8192, True), (24, 8192, False), (400, 200, False)])
def test_the_farthest_distance_is_asked_for_where_there_is_room(documents, positions, far, tokenizer, rule):
    model = Echo(len(tokenizer), 1.0)
    model.config.max_position_embeddings = positions
    texts = [*DOCUMENTS] * (documents // len(DOCUMENTS) + 1)
    found = needle(model, tokenizer, texts[:documents], rule, trials=8, progress=False)
    assert found.distances == ((0, 1, 2, 4, 8, 16, 64) if far else (0, 1, 2, 4, 8, 16))


def test_trials_that_cannot_be_balanced_are_refused(tokenizer, rule):
    with pytest.raises(ValueError, match="`trials` is 50: it must be a multiple of `candidates`, 4"):
        needle(Echo(len(tokenizer), 1.0), tokenizer, DOCUMENTS, rule, trials=50, progress=False)


def test_an_answer_that_a_tokenizer_joins_with_the_context_is_scored_from_where_they_part():
    class Joining:
        """Letters are tokens, and so is `sM`."""

        bos_token_id = eos_token_id = 0

        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [[*map(ord, text.replace("sM", "#"))] for text in texts]}

    pairs = context._answer_pairs(Joining(), "was", ["M", "n"])
    assert pairs == [([0, *b"wa"], [*b"#"]), ([0, *b"wa"], [*b"sn"])]

"""Figures of texts whose figures are known, and Brier scores of models whose scores are known."""

import pytest
import torch
from models import tiny_backbone, tiny_sllm
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

from hf_sllm.data import sentence_rule, train_tokenizer
from hf_sllm.evaluation.writing import _figures, _sample, brier_lm, writing

DOCUMENTS = [{"text": "abcdefghijklmnopqrstuvwxyz."}]


class Follower(PreTrainedModel, GenerationMixin):
    """The next token is what a table `(vocab, vocab)` of logits says of the last one."""

    config_class = PreTrainedConfig

    def __init__(self, logits: torch.Tensor):
        super().__init__(PreTrainedConfig(vocab_size=len(logits), num_hidden_layers=1, is_encoder_decoder=False))
        self.table = torch.nn.Parameter(logits)
        self.generation_config = GenerationConfig(repetition_penalty=9.0, temperature=0.01, top_k=1)

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return CausalLMOutput(logits=self.table[input_ids])

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}


@pytest.fixture(scope="module")
def tokenizer():
    # No merges: each letter is a token.
    return train_tokenizer(["."], 259)


@pytest.fixture(scope="module")
def rule(tokenizer):
    return sentence_rule(tokenizer)


def follower(tokenizer, text: str = DOCUMENTS[0]["text"], step: int = 0) -> Follower:
    """Sure of what follows in a text that has no token twice, or of what follows some steps later."""
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert len(set(ids)) == len(ids)
    logits = torch.full((len(tokenizer), len(tokenizer)), -1e4)
    for place, token in enumerate(ids):
        logits[token, ids[(place + 1 + step) % len(ids)]] = 0.0
    return Follower(logits)


def uniform(tokenizer, letters: str = "abcd") -> Follower:
    """Finds some tokens equally likely, whatever comes before."""
    logits = torch.full((len(tokenizer), len(tokenizer)), -1e4)
    logits[:, tokenizer(letters)["input_ids"]] = 0.0
    return Follower(logits)


def test_who_is_always_right_has_a_brier_lm_of_100(tokenizer):
    found = brier_lm(follower(tokenizer), tokenizer, DOCUMENTS, progress=False)
    assert found.brier == (1.0, 1.0, 1.0, 1.0)
    assert (found.brier_lm, found.brier_lm_standard_error) == (pytest.approx(100), 0.0)
    # 28 tokens after the start token, of which the last block takes 4.
    assert found.prefixes == 25


def test_who_is_sure_of_the_wrong_has_minus_1_and_no_geometric_mean(tokenizer):
    found = brier_lm(follower(tokenizer, step=1), tokenizer, DOCUMENTS, progress=False)
    assert found.brier == (-1.0, -1.0, -1.0, -1.0)
    assert found.brier_lm is None and found.brier_lm_standard_error is None


def test_who_guesses_among_v_has_1_over_v(tokenizer):
    draw = torch.Generator().manual_seed(0)
    letters = torch.randint(4, (100, 20), generator=draw).tolist()
    documents = [{"text": "".join("abcd"[letter] for letter in row)} for row in letters]
    # No end of text within the blocks: where it stands is no guess among four.
    found = brier_lm(
        uniform(tokenizer), tokenizer, documents, (1, 2), prefixes=1500, max_prefix=18, batch_size=500, progress=False
    )
    assert found.prefixes == 1500
    for value, error, expected in zip(found.brier, found.standard_errors, (1 / 4, 1 / 16), strict=True):
        assert 0 < error < 0.02
        assert value == pytest.approx(expected, abs=4 * error)
    assert found.brier_lm == pytest.approx(100 * (found.brier[0] * found.brier[1]) ** 0.5)


def test_the_draws_are_the_same_for_a_seed_and_leave_the_global_ones_alone(tokenizer):
    model = uniform(tokenizer)
    before = torch.random.get_rng_state()
    first = _sample(model, tokenizer, [[0]], 30, 1.0, 2, 1, 7, "", False)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == _sample(model, tokenizer, [[0]], 30, 1.0, 2, 1, 7, "", False)
    assert first[0][0] != first[0][1]
    assert first != _sample(model, tokenizer, [[0]], 30, 1.0, 2, 1, 8, "", False)


def test_the_models_own_settings_of_generation_do_not_count_and_come_back(tokenizer):
    model = uniform(tokenizer)
    own = model.generation_config
    (texts,) = _sample(model, tokenizer, [[0]], 400, 1.0, 1, 1, 0, "", False)
    shares = torch.bincount(torch.tensor(texts[0]))[tokenizer("abcd")["input_ids"]] / 400
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.09)
    assert model.generation_config is own


def test_a_text_that_ends_before_the_others_of_its_batch_ends_there(tokenizer):
    ids = [tokenizer.bos_token_id, *tokenizer(DOCUMENTS[0]["text"])["input_ids"]]
    found = _sample(follower(tokenizer), tokenizer, [ids[:3], ids[:-1]], 9, 1.0, 1, 2, 0, "", False)
    assert found == [[ids[3:12]], [[ids[-1], tokenizer.eos_token_id]]]


@pytest.mark.parametrize("make", [tiny_backbone, tiny_sllm])
def test_prompts_of_several_lengths_get_what_they_would_get_alone(make):
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    model = make()
    prompts = [[1], [1, 11, 12, 5, 13], [1, 14, 6], [1, 15, 16, 17]]
    # So cold that sampling is greedy search.
    together = _sample(model, Tokenizer(), prompts, 6, 1e-4, 2, 3, 0, "", False)
    alone = [_sample(model, Tokenizer(), [prompt], 6, 1e-4, 2, 1, 0, "", False)[0] for prompt in prompts]
    assert together == alone
    assert len({tuple(texts[0]) for texts in together}) > 1


def test_figures_are_those_counted_by_hand(tokenizer, rule):
    end = tokenizer.eos_token_id
    texts = [[*tokenizer(text)["input_ids"]] for text in ("abababa. é!", "xy")]
    texts[0].append(end)
    found = _figures(texts, [7, 2], tokenizer, rule)
    # Of the first seven tokens `abababa` and of `xy`.
    assert found.distinct_1 == pytest.approx(4 / 9)
    assert found.distinct_2 == pytest.approx(3 / 7)
    assert found.distinct_3 == pytest.approx(2 / 5)
    assert found.repetition == pytest.approx(2 / 4)
    # `abababa.` and ` é!`, the letter of which has two bytes; `xy` is no closed sentence.
    assert (found.sentence_tokens, found.sentence_characters) == ((8 + 4) / 2, (8 + 3) / 2)
    assert (found.ended, found.tokens) == (0.5, 14)


def test_what_cannot_be_counted_is_none(tokenizer, rule):
    found = _figures([[tokenizer.eos_token_id]], [0], tokenizer, rule)
    assert (found.distinct_1, found.repetition, found.sentence_tokens, found.sentence_characters) == (None,) * 4
    assert (found.ended, found.tokens) == (1.0, 0)


def test_who_writes_the_true_texts_has_the_figures_of_the_reference(tokenizer, rule):
    # No letter twice, so that the table knows the text.
    documents = [{"text": "abc\ndefg.hijk!lmnopq?"}]
    text = tokenizer(documents[0]["text"])["input_ids"]
    model = follower(tokenizer, documents[0]["text"])
    found = writing(model, tokenizer, documents, rule, prompt_sentences=1, progress=False)
    assert found.generated == found.reference
    assert (found.prompts, found.generated.ended, found.compared_tokens) == (1, 1.0, len(text) - 4)
    cut = writing(model, tokenizer, documents, rule, prompt_sentences=1, new_tokens=7, progress=False)
    assert (cut.generated.ended, cut.generated.tokens) == (0.0, 7)


def test_the_longer_of_two_continuations_is_cut_before_n_grams_are_counted(tokenizer, rule):
    documents = [{"text": "ab.cdefgh"}]
    # Goes on with `c` for ever: the reference has six tokens, and so have both sides where n-grams are counted.
    model = uniform(tokenizer, "c")
    found = writing(model, tokenizer, documents, rule, prompt_sentences=1, new_tokens=50, progress=False)
    assert found.compared_tokens == 6 and found.generated.tokens == 50
    assert (found.reference.distinct_1, found.generated.distinct_1) == (1.0, 1 / 6)
    assert (found.reference.repetition, found.generated.repetition) == (0.0, 2 / 3)


def test_documents_that_are_too_short_are_refused(tokenizer, rule):
    model = uniform(tokenizer)
    with pytest.raises(ValueError, match="no document has more than 2 sentences"):
        writing(model, tokenizer, DOCUMENTS, rule, progress=False)
    with pytest.raises(ValueError, match="fewer than two places with 40 tokens after them"):
        brier_lm(model, tokenizer, DOCUMENTS, (40,), progress=False)


def test_more_than_the_model_reads_is_refused(tokenizer):
    model = tiny_backbone(vocab_size=len(tokenizer), max_position_embeddings=8)
    with pytest.raises(ValueError, match="have 29 tokens, and the model reads 8 at once"):
        brier_lm(model, tokenizer, DOCUMENTS, progress=False)

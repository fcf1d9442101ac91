"""Every token is scored once, after all that the window before it holds, and a close has the probability it has."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from models import tiny_backbone
from transformers import PreTrainedConfig

from hf_sllm import SllmForCausalLM
from hf_sllm.data import document_ids, sentence_rule, train_tokenizer
from hf_sllm.evaluation import default_window, score_documents
from hf_sllm.evaluation.likelihood import windows_of
from hf_sllm.modeling import SentenceSegmenter

TEXTS = [
    "A goat ate the hat; the hat, it was red. Yes.",
    "No.",
    "Où est la clé? Here it is! Thank you very much indeed, said the goat.\n\nThe end.",
]
DOCUMENTS = [{"text": text} for text in TEXTS]

ODD_TEXTS = {
    "empty": "",
    "one token": "a",
    "space": " ",
    "no boundary": "word and word and word " * 2,
    "boundaries only": "?!...\n\n\n",
    "chinese": "猫坐在垫子上。狗呢？",
    "arabic": "القطة على السجادة. أين الكلب؟",
    "emoji": "🐈‍⬛ and 👩‍👩‍👧‍👦! 🇫🇷.",
    "code": "def f(x):\n\treturn x['a.b'] if x else {}  # done.\n",
    "nul": "a\0b\0\0.",
    "special tokens": "<s>a</s>b.",
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


@pytest.fixture(scope="module")
def backbone(tokenizer):
    return tiny_backbone(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2)


@pytest.fixture(scope="module")
def sllm(backbone, tokenizer):
    return SllmForCausalLM.from_backbone(
        backbone, tokenizer, decoder_layers=1, max_sentence_length=12, decoder_context_length=5
    ).eval()


KINDS = pytest.mark.parametrize("kind", ["backbone", "sllm"])


def rows_of(texts, tokenizer) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in document_ids(texts, tokenizer)]


def scores_of(model, tokenizer, documents=DOCUMENTS, **options):
    """By the documents' numbers."""
    scores = list(score_documents(model, tokenizer, documents, progress=False, **options))
    return sorted(scores, key=lambda document: document.index)


@torch.no_grad()
def log_probabilities_by_hand(model, row: torch.Tensor, window: int, stride: int) -> torch.Tensor:
    """`(tokens, vocab)`, one token at a time."""
    found = []
    for position in range(1, len(row)):
        further = math.ceil(max(position - window, 0) / stride)
        end = min(window + further * stride, len(row) - 1)
        logits = model(row[None, max(end - window, 0) : position]).logits[0, -1]
        found.append(logits.double().log_softmax(-1))
    return torch.stack(found)


@KINDS
@pytest.mark.parametrize("window, stride, batch_size", [(200, 100, 2), (9, 4, 1), (9, 9, 4), (1, 1, 8)])
def test_a_token_costs_what_the_model_says_after_all_that_its_window_holds(
    kind, window, stride, batch_size, tokenizer, request
):
    model = request.getfixturevalue(kind)
    found = scores_of(model, tokenizer, window=window, stride=stride, batch_size=batch_size)
    for row, document in zip(rows_of(TEXTS, tokenizer), found, strict=True):
        expected = log_probabilities_by_hand(model, row, window, stride)
        assert document.token_ids.tolist() == row[1:].tolist()
        assert document.nats.dtype == torch.float64
        expected = -expected.gather(1, row[1:, None]).squeeze(1)
        torch.testing.assert_close(document.nats, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window, stride", [(8, 8), (8, 3), (8, 1), (7, 6), (1, 1)])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16, 17, 40])
def test_the_windows_are_the_harness_own(tokens, window, stride):
    windows = pytest.importorskip("lm_eval.utils").get_rolling_token_windows
    row = list(range(tokens + 1))
    expected = list(windows(row[1:], 0, window, window - stride + 1))
    found = [
        (row[begin:end], row[end - scored + 1 : end + 1]) for begin, end, scored in windows_of(tokens, window, stride)
    ]
    assert found == expected
    assert [token for _, scored in found for token in scored] == row[1:]


@KINDS
@pytest.mark.parametrize("unit", ["sentence", "clause"])
def test_a_close_is_as_probable_as_all_tokens_that_would_close_there(kind, unit, tokenizer, request):
    model = request.getfixturevalue(kind)
    rule = sentence_rule(tokenizer, unit, max_sentence_length=7, min_sentence_length=3, min_clause_length=5)
    segmenter = SentenceSegmenter(rule)
    found = scores_of(model, tokenizer, rule=rule, window=20, stride=10)
    for row, document in zip(rows_of(TEXTS, tokenizer), found, strict=True):
        probabilities = log_probabilities_by_hand(model, row, 20, 10).exp()
        for position, probability in enumerate(probabilities, start=1):
            # The document up to there, with each token of the vocabulary after it.
            ids = row[:position].expand(len(probability), -1)
            ids = torch.cat([ids, torch.arange(len(probability))[:, None]], 1)
            closes = segmenter.layout(ids, torch.ones_like(ids).bool()).token_closes.view(ids.shape)[:, -1]
            assert document.close_probability[position - 1].item() == pytest.approx(
                probability[closes].sum().item(), rel=1e-3, abs=1e-6
            )
            assert document.closes[position - 1] == closes[row[position]]
            assert document.forced[position - 1] == closes.all()
    assert any(document.forced.any() for document in found)


@pytest.mark.parametrize("start", ["bos", "eos"])
def test_sentences_are_those_of_the_whole_document_whatever_the_window(start, backbone, tokenizer):
    if start == "eos":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.bos_token = None
    rule = sentence_rule(tokenizer)
    (document,) = scores_of(backbone, tokenizer, DOCUMENTS[2:], rule=rule, window=5, stride=2)
    ends = document.closes.nonzero().squeeze(1).tolist()
    texts = [tokenizer.decode(part) for part in document.token_ids.tensor_split([end + 1 for end in ends])]
    thanks = " Thank you very much indeed, said the goat."
    assert texts == ["Où est la clé?", " Here it is!", thanks, "\n\n", "The end.", "</s>", ""]
    assert document.sentence.tolist() == [sum(end < token for end in ends) for token in range(len(document.nats))]


@KINDS
@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_odd_texts_are_scored_to_their_last_byte(kind, text, tokenizer, request):
    model = request.getfixturevalue(kind)
    (row,) = rows_of([text], tokenizer)
    (document,) = scores_of(model, tokenizer, [{"text": text}], rule=sentence_rule(tokenizer), window=30, stride=15)
    expected = log_probabilities_by_hand(model, row, 30, 15).gather(1, row[1:, None]).squeeze(1)
    torch.testing.assert_close(document.nats, -expected, rtol=1e-4, atol=1e-5)
    assert document.bytes == document.token_bytes.sum() == len(text.encode())
    assert len(document.nats) == len(document.closes) == len(row) - 1
    assert document.closes[-1]


def test_documents_are_told_apart_when_long_ones_come_first(backbone, tokenizer):
    scores = list(score_documents(backbone, tokenizer, DOCUMENTS, batch_size=1, progress=False))
    assert [document.index for document in scores] == [2, 0, 1]
    assert [tokenizer.decode(document.token_ids[:-1]) for document in scores] == [TEXTS[2], TEXTS[0], TEXTS[1]]


def test_no_documents_have_no_scores(backbone, tokenizer):
    assert scores_of(backbone, tokenizer, []) == []


class Uniform(torch.nn.Module):
    """A model that knows nothing, and notes how much it reads at once."""

    device = torch.device("cpu")

    def __init__(self, vocab_size: int, limit: int | None = None):
        super().__init__()
        self.vocab_size, self.most = vocab_size, 0
        self.config = PreTrainedConfig()
        if limit is not None:
            self.config.max_position_embeddings = limit

    def forward(self, input_ids, attention_mask, use_cache):
        self.most = max(self.most, input_ids.numel())
        return SimpleNamespace(logits=torch.zeros(1, 1, self.vocab_size).expand(*input_ids.shape, -1))


def test_a_document_of_a_megabyte_is_read_in_parts(tokenizer):
    model = Uniform(len(tokenizer), limit=1000)
    text = "the goat ate the hat, and " * 40_000
    (document,) = scores_of(model, tokenizer, [{"text": text}], rule=sentence_rule(tokenizer), batch_size=4)
    assert document.bytes == len(text) and len(document.nats) > 100_000
    assert model.most == 4 * 1000
    assert document.nats.sum().item() == pytest.approx(len(document.nats) * math.log(len(tokenizer)))


def test_the_window_is_what_all_the_models_read_for_sure(backbone, sllm, tokenizer):
    assert default_window(backbone) == 256
    assert default_window(sllm) == default_window(backbone, sllm) == 255
    assert default_window(Uniform(9)) == 2048


def test_the_default_window_leaves_a_position_for_each_of_the_shortest_sentences(tokenizer):
    backbone = tiny_backbone("gpt2", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1, n_positions=32)
    sllm = SllmForCausalLM.from_backbone(
        backbone, tokenizer, decoder_layers=1, min_sentence_length=1, max_sentence_length=9, decoder_context_length=3
    ).eval()
    documents = [{"text": "\n" * 50}]
    assert default_window(sllm) == 31
    (document,) = scores_of(sllm, tokenizer, documents)
    assert document.nats.isfinite().all() and len(document.nats) == 51
    with pytest.raises(ValueError, match="a window has 33 sentences, and the model reads at most 32"):
        scores_of(sllm, tokenizer, documents, window=32)


def test_an_sllm_may_read_more_tokens_than_its_backbone_has_positions(sllm, tokenizer):
    documents = [{"text": "the goat ate the hat. " * 60}]
    (whole,) = scores_of(sllm, tokenizer, documents, window=1000)
    (row,) = rows_of([documents[0]["text"]], tokenizer)
    assert len(row) > 300
    with torch.no_grad():
        loss = sllm(row[None], labels=row[None]).loss.item()
    assert whole.nats.mean().item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 0}, "`window` is 0"),
        ({"window": 8, "stride": 9}, "`stride` is 9: it must be 1 to `window`, 8"),
        ({"window": 8, "stride": 0}, "`stride` is 0"),
        ({"window": 300}, "a window has 280 tokens, and the model reads at most 256"),
    ],
)
def test_windows_that_cannot_be_are_refused(options, message, backbone, tokenizer):
    documents = [{"text": "猫" * 93}]
    with pytest.raises(ValueError, match=message):
        scores_of(backbone, tokenizer, documents, **options)


def test_a_lone_surrogate_is_refused_with_its_place(backbone, tokenizer):
    with pytest.raises(ValueError, match=r"document 1 has a lone surrogate, U\+D800, at character 2"):
        scores_of(backbone, tokenizer, [{"text": "A."}, {"text": "a \ud800"}])


def test_a_model_is_left_in_training_when_the_caller_stops_early(backbone, tokenizer):
    backbone.train()
    scores = score_documents(backbone, tokenizer, DOCUMENTS, batch_size=1, progress=False)
    next(scores)
    assert not backbone.training
    scores.close()
    assert backbone.training
    backbone.eval()


def test_a_tokenizer_that_knows_no_offsets_gives_no_bytes(backbone, tokenizer, monkeypatch):
    expected = scores_of(backbone, tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    for document, other in zip(scores_of(backbone, tokenizer), expected, strict=True):
        assert document.token_bytes is None and document.bytes == other.bytes
        assert torch.equal(document.nats, other.nats)

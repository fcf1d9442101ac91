"""The statistics count the sentences that a model would read."""

import copy
import json
from collections import Counter

import pytest
import torch
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.data import (
    document_ids,
    load_documents,
    plot_sentence_lengths,
    sentence_rule,
    sentence_statistics,
    statistics,
    train_tokenizer,
)
from hf_sllm.modeling import SentenceSegmenter

TEXTS = [
    'The hen laid an egg, a brown one, and was proud of it. "Look!" she called; nobody came.',
    "It was dark in the cellar.\nSomething moved.\nIt was only a mouse: a mouse with a crumb.",
    "Two boys built a raft from old planks, a barrel and rope and they sailed it down the stream until it sank",
    "Où est la clé, là? — Elle est là, 你好。 😀",
    "A",
    "",
]
DOCUMENTS = [{"text": text} for text in TEXTS]
FOREVER = 10**6


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


def lengths_of(texts, tokenizer, rule, max_sentence_length):
    """The length of each sentence, by the rule, one token at a time."""
    rule = copy.copy(rule)
    rule.max_sentence_length = max_sentence_length
    segmenter, lengths = SentenceSegmenter(rule), []
    for ids in document_ids(texts, tokenizer):
        size = 0
        for token in ids:
            size += 1
            if segmenter.closes(torch.tensor([token]), torch.tensor([size - 1])):
                lengths.append(size)
                size = 0
    return lengths


@pytest.mark.parametrize("characters", [1, 100, 10_000])
@pytest.mark.parametrize("unit", ["sentence", "clause"])
def test_sentences_are_those_of_the_rule(tokenizer, unit, characters, monkeypatch):
    monkeypatch.setattr(statistics, "CHARACTERS_AT_A_TIME", characters)
    rule = sentence_rule(tokenizer, unit, max_sentence_length=20)
    found = sentence_statistics(DOCUMENTS, tokenizer, rule, candidates=[5, 7, 60], progress=False)
    natural = lengths_of(TEXTS, tokenizer, rule, FOREVER)
    assert found.lengths == Counter(natural)
    assert (found.documents, found.sentences, found.tokens) == (len(TEXTS), len(natural), sum(natural))
    assert found.single_tokens == natural.count(1)
    assert [cut.max_sentence_length for cut in found.cuts] == [5, 7, 20, 60]
    for cut in found.cuts:
        lengths = lengths_of(TEXTS, tokenizer, rule, cut.max_sentence_length)
        assert cut.sentences == len(lengths)
        assert cut.tokens_per_sentence == pytest.approx(sum(lengths) / len(lengths))


def test_what_is_cut_are_the_sentences_that_would_be_longer(tokenizer):
    rule = sentence_rule(tokenizer, max_sentence_length=20)
    natural = lengths_of(TEXTS, tokenizer, rule, FOREVER)
    found = sentence_statistics(DOCUMENTS, tokenizer, rule, candidates=[max(natural)], progress=False)
    longest, cut = found.cuts[-1], found.cuts[0]
    longer = [length for length in natural if length > 20]
    assert 0 < len(longer) < len(natural)
    assert cut.cut_sentences == pytest.approx(len(longer) / len(natural))
    assert cut.cut_tokens == pytest.approx(sum(longer) / sum(natural))
    assert (longest.cut_sentences, longest.cut_tokens, longest.sentences) == (0, 0, len(natural))


def test_every_byte_is_in_one_sentence(tokenizer):
    sentences = ["Où est la clé?", " 你好!", " 😀 Look!"]
    documents = [{"text": "".join(sentences)}] * 2
    found = sentence_statistics(documents, tokenizer, sentence_rule(tokenizer), progress=False)
    sizes = sorted(len(sentence.encode()) for sentence in sentences)
    assert found.bytes == 2 * sum(sizes) == 70
    assert found.sentences == 2 * 4  # the end of text is the fourth
    assert (found.bytes_per_sentence.median, found.bytes_per_sentence.max) == (sizes[0], sizes[-1])
    assert found.bytes_per_sentence.mean == pytest.approx(70 / 8)


def test_quantiles_hold_their_share():
    found = statistics._distribution(Counter({1: 50, 2: 40, 3: 9, 100: 1}))
    assert (found.median, found.p90, found.p99, found.max) == (1, 2, 3, 100)
    assert found.mean == pytest.approx(2.57)


def test_a_stream_has_the_statistics_of_a_list(tokenizer, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    stream = load_documents(tmp_path / "texts.jsonl", streaming=True, limit=3)
    rule = sentence_rule(tokenizer)
    assert sentence_statistics(stream, tokenizer, rule, progress=False) == sentence_statistics(
        DOCUMENTS[:3], tokenizer, rule, progress=False
    )


@pytest.mark.parametrize("text", ["", "A", "."])
def test_a_document_of_one_token_can_be_measured_and_drawn(tokenizer, tmp_path, text):
    found = sentence_statistics([{"text": text}], tokenizer, sentence_rule(tokenizer), progress=False)
    assert (found.tokens, found.bytes) == (2 + len(text), len(text))
    plot_sentence_lengths(found, tmp_path / "sentences.png")
    assert (tmp_path / "sentences.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_refused(tokenizer):
    rule = sentence_rule(tokenizer)
    with pytest.raises(ValueError, match="no documents"):
        sentence_statistics([], tokenizer, rule, progress=False)
    with pytest.raises(ValueError, match="`max_sentence_length` is 0"):
        sentence_statistics(DOCUMENTS, tokenizer, rule, candidates=[0], progress=False)
    rule.eos_token_id = None
    with pytest.raises(ValueError, match="`eos_token_id` is None: it must hold 1"):
        sentence_statistics(DOCUMENTS, tokenizer, rule, progress=False)


@pytest.fixture
def stats(tokenizer, tmp_path, monkeypatch):
    """Runs the command in a folder with some documents."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("tokenizer")
    for name, rows in (("a", DOCUMENTS[:2]), ("b", DOCUMENTS[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments):
        return CliRunner().invoke(app, ["data", "stats", *arguments, "--tokenizer", "tokenizer"])

    return run


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["cached", "streamed"])
def test_the_command_prints_and_writes_what_is_measured(stats, tokenizer, tmp_path, streaming):
    options = ["--unit", "clause", "--max-sentence-length", "20", "--limit", "3", "--output", "out/deep"]
    result = stats("a.jsonl", "b.jsonl", *options, *streaming)
    assert result.exit_code == 0, result.output
    rule = sentence_rule(tokenizer, "clause", 20)
    found = sentence_statistics(DOCUMENTS[:3], tokenizer, rule, progress=False)
    assert f"3 documents, {found.sentences} sentences" in result.stdout
    written = json.loads((tmp_path / "out/deep/sentences.json").read_text())
    assert written["sentences"] == found.sentences
    assert {int(length): number for length, number in written["lengths"].items()} == found.lengths
    assert (tmp_path / "out/deep/sentences.png").stat().st_size > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["c.jsonl"], "there is no file c.jsonl"),
        (["a.jsonl", "--unit", "word"], "`unit` is 'word'"),
        (["a.jsonl", "--text-column", "story"], "no column 'story', only text"),
    ],
)
def test_what_the_command_cannot_do_is_said_plainly(stats, arguments, message):
    result = stats(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr

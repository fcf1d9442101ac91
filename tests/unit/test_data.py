"""Documents become token ids, blocks and batches, and nothing is lost on the way."""

import json

import datasets
import pytest
import torch
from transformers import AutoConfig

from hf_sllm import SllmConfig
from hf_sllm.data import BlockCollator, document_ids, load_documents, make_blocks, train_tokenizer
from hf_sllm.data import blocks as blocks_module
from hf_sllm.modeling import SentenceSegmenter, boundary_tokens

TEXTS = [
    'The hen laid an egg. She was proud of it. "Look!" she called. Nobody came.',
    "It was dark in the cellar.\nSomething moved. It was only a mouse with a crumb.",
    "Two boys built a raft from old planks and rope and they sailed it down the stream until it sank",
    "Où est la clé? — Elle est là, 你好。 😀",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def config(tokenizer):
    backbone = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return SllmConfig.from_text_config(
        backbone, encoder_layers=1, max_sentence_length=24, **boundary_tokens(tokenizer)
    )


@pytest.fixture
def blocks(tokenizer, config):
    return make_blocks(datasets.Dataset.from_dict({"text": TEXTS}), tokenizer, config, block_size=30)


def sentence_starts(ids: list[int], config: SllmConfig) -> set[int]:
    """By the rule, one token at a time."""
    segmenter, starts, open_length = SentenceSegmenter(config), {0}, 0
    for position, token in enumerate(ids):
        closes = segmenter.closes(torch.tensor([token]), torch.tensor([open_length])).item()
        open_length = 0 if closes else open_length + 1
        if closes:
            starts.add(position + 1)
    return starts


def test_blocks_hold_each_token_of_each_document_once_and_in_order(blocks, tokenizer):
    documents = document_ids(TEXTS, tokenizer)
    assert len(blocks) > len(documents)
    assert sum(blocks["input_ids"][:], []) == sum(documents, [])


def test_blocks_begin_where_sentences_begin_and_are_not_too_long(blocks, tokenizer, config):
    begins, begin = set(), 0
    for ids in blocks["input_ids"][:]:
        begins.add(begin)
        begin += len(ids)
    allowed, offset = set(), 0
    for ids in document_ids(TEXTS, tokenizer):
        allowed |= {offset + start for start in sentence_starts(ids, config) if start < len(ids)}
        offset += len(ids)
    assert begins <= allowed
    assert max(blocks["length"][:]) <= 30
    assert blocks["length"][:] == [len(ids) for ids in blocks["input_ids"][:]]


def test_a_block_ends_only_where_the_next_sentence_would_not_fit(blocks, tokenizer, config):
    following = blocks["input_ids"][1:]
    for ids, after in zip(blocks["input_ids"][:-1], following, strict=True):
        if ids[-1] != tokenizer.eos_token_id:
            first_sentence = min(start for start in sentence_starts(after, config) if start > 0)
            assert len(ids) + first_sentence > 30


def test_blocks_are_the_same_each_time_and_found_in_the_cache(tmp_path, tokenizer, config, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    first, second = (make_blocks(load_documents(source), tokenizer, config, block_size=30) for _ in range(2))
    assert first["input_ids"][:] == second["input_ids"][:]
    assert first.cache_files == second.cache_files != []
    other = make_blocks(load_documents(source), tokenizer, config, block_size=40)
    assert max(other["length"][:]) > 30


def test_blocks_that_were_made_before_are_not_made_again(tmp_path, tokenizer, config, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:1]), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(TEXTS[2:]), encoding="utf-8")
    made = []
    monkeypatch.setattr(blocks_module, "document_ids", lambda *args: made.append(args) or document_ids(*args))
    for _ in range(2):
        make_blocks(load_documents([tmp_path / "a.txt", tmp_path / "b.txt"]), tokenizer, config, block_size=30)
    assert len(made) == 1


def test_streamed_blocks_are_those_of_the_cache(blocks, tokenizer, config):
    stream = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(num_shards=2)
    streamed = make_blocks(stream, tokenizer, config, block_size=30)
    assert isinstance(streamed, datasets.IterableDataset)
    assert list(streamed) == blocks.to_list()
    assert streamed.features == blocks.features


def test_several_processes_make_the_blocks_of_one(tmp_path, tokenizer, config, monkeypatch):
    # Each its own cache: otherwise the second call reads what the first has made.
    made = []
    for num_proc in (None, 2):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / str(num_proc))
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        made.append(make_blocks(load_documents(tmp_path / "texts.jsonl"), tokenizer, config, 30, num_proc))
    assert made[0].to_list() == made[1].to_list()
    assert (len(made[0].cache_files), len(made[1].cache_files)) == (1, 2)


def test_streamed_documents_are_not_cut_by_several_processes(tokenizer, config):
    stream = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
    with pytest.raises(ValueError, match="`num_proc` is 2.*`DataLoader`"):
        make_blocks(stream, tokenizer, config, block_size=30, num_proc=2)


def test_a_block_shorter_than_a_sentence_is_refused(tokenizer, config):
    with pytest.raises(ValueError, match="`block_size` is 23: it must be at least `max_sentence_length`, 24"):
        make_blocks(datasets.Dataset.from_dict({"text": TEXTS}), tokenizer, config, block_size=23)


def test_padding_is_on_the_right_neither_attended_to_nor_scored():
    batch = BlockCollator(pad_token_id=9)([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]


def test_a_token_that_equals_the_padding_is_still_scored():
    batch = BlockCollator(pad_token_id=2)([{"input_ids": [1, 2]}, {"input_ids": [1]}])
    assert batch["labels"].tolist() == [[1, 2], [1, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_trained_tokenizer_gives_every_text_back(tokenizer):
    for text in [*TEXTS, " leading and trailing ", "tab\tnew\nline", "日本語 \u0000 \U0001f9e0", ""]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_trained_tokenizer_adds_no_special_tokens_and_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("A hen.")["input_ids"] == tokenizer("A hen.", add_special_tokens=False)["input_ids"]
    assert loaded.convert_tokens_to_ids(["<s>", "</s>", "<pad>"]) == [0, 1, 2]
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>", "</s>", "<pad>")


def test_what_closes_a_quotation_can_be_one_token():
    tokenizer = train_tokenizer(['"Go." "Run." "Stop."'] * 3, 270)
    assert '."' in tokenizer.get_vocab()


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(ValueError, match="`tokenizer_vocab_size` is 200"):
        train_tokenizer(TEXTS, 200)

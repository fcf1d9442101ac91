"""Chats: what is learned of them, and where their sentences end."""

import pytest
import torch
from datasets import Dataset
from models import BOUNDARIES, VOCAB_SIZE, tiny_backbone
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hf_sllm.data import BlockCollator, load_chats, make_blocks
from hf_sllm.data.chats import chat_text
from hf_sllm.modeling import SllmForCausalLM

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
CHAT = [
    {"role": "user", "content": "w10 w11"},
    {"role": "assistant", "content": "w12 w5 w13"},
    {"role": "user", "content": "w14"},
    {"role": "assistant", "content": "w15"},
]
IM_END = 59


def chat_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", " ", *(f"w{i}" for i in range(5, 56)), "user", "assistant"]
    vocab = {word: index for index, word in enumerate([*words, "<|im_start|>", "<|im_end|>"])}
    core = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = Split(" ", "isolated")
    core.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **names)


def wrapped(tokenizer, **config) -> SllmForCausalLM:
    backbone = tiny_backbone()
    backbone.config.eos_token_id = 2
    backbone.generation_config = GenerationConfig(eos_token_id=[2, 57], pad_token_id=0, **config)
    return SllmForCausalLM.from_backbone(backbone, tokenizer, boundary_token_ids=BOUNDARIES, max_sentence_length=9)


def test_all_tokens_that_end_a_text_or_a_turn_close_sentences_and_end_what_is_written():
    """Of the config, of the generation config, and of the chat template."""
    model = wrapped(chat_tokenizer())
    assert model.config.eos_token_id == [2, 57, IM_END] == model.generation_config.eos_token_id
    strength = model.model.segmenter.closing_strength(torch.arange(VOCAB_SIZE)).tolist()
    assert [token for token, own in enumerate(strength) if own == 3] == [2, 57, IM_END]
    assert wrapped(chat_tokenizer(None)).config.eos_token_id == [2, 57]


def test_a_template_that_cannot_be_asked_is_told_and_adds_none(caplog):
    model = wrapped(chat_tokenizer("{{ raise_exception('turns of a system first') }}"))
    assert model.config.eos_token_id == [2, 57]


def test_only_what_the_assistant_says_is_learned_each_token_once():
    tokenizer, model = chat_tokenizer(), wrapped(chat_tokenizer())
    text, turns = chat_text(CHAT, tokenizer)
    assert [text[begin:end] for begin, end in turns] == ["w12 w5 w13<|im_end|>", "w15<|im_end|>"]
    documents = Dataset.from_dict({"text": [text, text], "assistant_turns": [turns, turns]})
    for block_size in (9, 100):  # cut into blocks or not
        blocks = make_blocks(documents, tokenizer, model.config, block_size)
        ids, labels = (sum(blocks[name][:], []) for name in ("input_ids", "labels"))
        learned = tokenizer.decode([token for token in labels if token != -100])
        assert learned.replace(" ", "") == "w12w5w13<|im_end|>w15<|im_end|>" * 2
        assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
        batch = BlockCollator(0)([blocks[0], blocks[len(blocks) - 1]])
        assert (batch["labels"] != -100).sum() == sum(
            label != -100 for row in (0, -1) for label in blocks[row]["labels"]
        )


def test_a_template_that_writes_turns_otherwise_later_is_refused():
    """Some leave out of earlier turns what they keep of the last one."""
    template = "{% for m in messages %}{{ m['content'] }}{% if loop.last %}!{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="turns up to number 1"):
        chat_text(CHAT, chat_tokenizer(template))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"turns": CHAT}], "no column 'messages', only turns"),
        ([{"messages": CHAT}, {"messages": [{"role": "user"}]}], "row 1 of .*is no chat"),
    ],
)
def test_what_is_no_chat_is_told(tmp_path, rows, told):
    file = str(tmp_path / "chats.jsonl")
    Dataset.from_list(rows).to_json(file)
    with pytest.raises(ValueError, match=told):
        load_chats(file, chat_tokenizer("{% for m in messages %}{{ m['content'] + '' }}{% endfor %}"))
    with pytest.raises(ValueError, match="has none: set its `chat_template`"):
        load_chats(file, chat_tokenizer(None))

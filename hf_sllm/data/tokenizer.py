"""A tokenizer of one's own, for a model trained from scratch."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE: every text round-trips, and nothing is unknown.

    Words are split as GPT-2 splits them, which leaves runs of punctuation whole: what closes a quoted sentence, `."`,
    can become one token. It adds no special token by itself, see `document_ids`.

    Args:
        texts: What to learn the vocabulary from.
        vocab_size: Tokens in all, the special ones and the 256 bytes included. Fewer come out if the texts are few.

    Raises:
        ValueError: If the vocabulary is too small to hold the bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"`tokenizer_vocab_size` is {vocab_size}: the bytes and special tokens alone are {smallest}, so it must "
            "be at least that."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)

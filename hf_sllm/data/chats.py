"""Chats: rows of messages, as the text that a chat template makes of them, and where in it the assistant speaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from .sources import find_source, open_source

if TYPE_CHECKING:
    from datasets import Dataset

# The column beside `text`: from which character to which one the assistant speaks, for each of its turns.
TURNS = "assistant_turns"


def load_chats(
    source: str | Path | Sequence[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    split: str = "train",
    messages_column: str = "messages",
    limit: int | None = None,
) -> Dataset:
    """Loads chats.

    Args:
        source: As for `load_documents`.
        tokenizer: Its chat template makes texts of them.
        split: Which split of a dataset on the Hub.
        messages_column: The column that holds a list of messages, each with a `role` and a `content`.
        limit: Keep the first so many.

    Returns:
        A dataset with the columns `text`, without a start token, and `assistant_turns`.

    Raises:
        ValueError: If there is no chat template, no such column, or a chat of which no text can be made.
    """
    from datasets import Features, List, Value, concatenate_datasets
    from datasets.fingerprint import Hasher

    if tokenizer.chat_template is None:
        raise ValueError(
            "`messages_column` needs a tokenizer with a chat template, and this one has none: set its "
            "`chat_template`, or write the chats as texts."
        )
    parts: list[Dataset] = []
    for name in [source] if isinstance(source, (str, Path)) else source:
        chats = open_source(find_source(str(name), split), streaming=False)
        if chats is None:
            continue
        if messages_column not in chats.column_names:
            raise ValueError(
                f"{name} has no column {messages_column!r}, only {', '.join(chats.column_names)}: pass "
                "`messages_column`."
            )
        chats = chats.select_columns(messages_column)

        def render(row: dict[str, Any], index: int, name: str | Path = name) -> dict[str, Any]:
            try:
                text, turns = chat_text(row[messages_column], tokenizer)
            except Exception as error:  # also those of the template's own language
                raise ValueError(f"row {index} of {name} is no chat: {error}") from error
            return {"text": text, TURNS: turns}

        features = Features({"text": Value("string"), TURNS: List(List(Value("int64")))})
        known_by = [chats._fingerprint, tokenizer.chat_template, tokenizer.special_tokens_map, messages_column]
        if limit is not None:
            chats = chats.select(range(min(limit - sum(map(len, parts)), len(chats))))
            known_by.append(len(chats))
        parts.append(
            chats.map(
                render,
                with_indices=True,
                remove_columns=chats.column_names,
                features=features,
                desc="Applying the chat template",
                new_fingerprint=Hasher.hash(known_by),
            )
        )
    if not sum(map(len, parts)):
        raise ValueError(f"{source} holds no chats.")
    return concatenate_datasets(parts)


def chat_text(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[list[int]]]:
    """The text of a chat, without a start token, and for each turn of the assistant where in it what it says begins
    and ends, with the token that ends the turn.

    Raises:
        ValueError: If the template makes another text of the turns before one than of the whole.
    """

    def render(count: int, prompt: bool = False) -> str:
        text = str(tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompt))
        return text.removeprefix(str(tokenizer.bos_token)) if tokenizer.bos_token else text

    whole, turns = render(len(messages)), []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(index, prompt=True), render(index + 1)
        if not (after.startswith(before) and whole.startswith(after)):
            raise ValueError(
                f"the chat template writes the turns up to number {index} in another way than in the whole chat, so "
                "it cannot be seen where the assistant speaks. Use a template that adds turns at the end."
            )
        turns.append([len(before), len(after)])
    return whole, turns

"""What our tasks ask: questions made of the files that the user names.

The harness calls these functions with all of a run's metadata: what `--metadata` says, the model's arguments and more.
Each takes its own, hence the `**others`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_sllm.data import load_documents
from hf_sllm.data.sources import find_source, open_source

if TYPE_CHECKING:
    from datasets import Dataset

Names = str | Path | Sequence[str | Path]

CHOICES = 4
# Where a story is cut, as a share of its sentences: at so many places that a model of a point more or less shows.
PLACES = tuple(part / 12 for part in range(1, 12))

# Sentence-final punctuation, closing quotes and brackets, then the space before what does not begin in lower case. By
# characters and not by a model's tokens, so that all models are asked the same.
_SENTENCE_GAP = re.compile(r"[.!?][\"'”’)\]]*(\s+)(?=[^\sa-z])")


def bits_per_byte(documents: Names | None = None, **others: Any) -> dict[str, Dataset]:
    """Texts, of `sllm_bits_per_byte`: rows of `text`.

    Raises:
        ValueError: If `documents` is not given or cannot be read.
    """
    return {"test": load_documents(_named("sllm_bits_per_byte", documents=documents)["documents"])}


def cloze(documents: Names | None = None, **others: Any) -> dict[str, Dataset]:
    """Stories to go on with, of `sllm_cloze`: see `cloze_questions`.

    Raises:
        ValueError: If `documents` is not given or cannot be read, or holds too few stories.
    """
    from datasets import Dataset

    stories = load_documents(_named("sllm_cloze", documents=documents)["documents"])
    return {"test": Dataset.from_list(cloze_questions(stories["text"]))}


def gsm8k(gsm8k_train: Names | None = None, gsm8k_test: Names | None = None, **others: Any) -> dict[str, Dataset]:
    """Sums in words, of `sllm_gsm8k`: rows of `question` and `answer`, whose last line is `#### ` and a number.

    Raises:
        ValueError: If a file is not given, cannot be read, or lacks a column.
    """
    names = _named("sllm_gsm8k", gsm8k_train=gsm8k_train, gsm8k_test=gsm8k_test)
    return {split: _sums(str(names[f"gsm8k_{split}"]), split) for split in ("train", "test")}


def cloze_questions(stories: Sequence[str]) -> list[dict[str, Any]]:
    """The begin of a story, and four sentences: the one that follows, and those that follow in the next three stories.

    Each story is cut after each twelfth of its sentences, where these are different places. The same
    stories in the same order make the same questions. Stories of a single sentence make none.

    Returns:
        Rows of `context`, `choices`, which begin with the space that the story has before the sentence, and `label`,
        the index of the one that follows.

    Raises:
        ValueError: If the stories hold fewer than four different sentences to choose from.
    """
    questions: list[dict[str, Any]] = []
    for place in PLACES:
        cuts = [cut for story in stories if (cut := _cut(story, place)) is not None]
        sentences = [sentence for _, _, sentence in cuts]
        if len(set(sentences)) < CHOICES:
            continue
        for index, (context, space, sentence) in enumerate(cuts):
            choices = [sentence]
            for other in range(index + 1, index + len(sentences)):
                if len(choices) == CHOICES:
                    break
                if sentences[other % len(sentences)] not in choices:
                    choices.append(sentences[other % len(sentences)])
            # Where all are equally likely, the harness takes the first: the true one is each in turn.
            label = index % CHOICES
            choices.insert(label, choices.pop(0))
            questions.append({"context": context, "choices": [space + choice for choice in choices], "label": label})
    if not questions:
        raise ValueError(
            f"`documents` has too few stories of two sentences or more: sllm_cloze needs {CHOICES} to choose from."
        )
    return questions


def _cut(story: str, place: float) -> tuple[str, str, str] | None:
    """What a story says up to some share of its sentences, the space that follows, and the sentence after it; None
    where an earlier cut is the same."""
    story = story.strip()
    gaps = [match.span(1) for match in _SENTENCE_GAP.finditer(story)]
    *before, number = [int(earlier * len(gaps)) for earlier in PLACES if earlier <= place]
    if not gaps or number in before:
        return None
    begin, end = gaps[number]
    sentence_end = gaps[number + 1][0] if number + 1 < len(gaps) else len(story)
    return story[:begin], story[begin:end], story[end:sentence_end]


def _sums(name: str, split: str) -> Dataset:
    """The rows of a file, or of a split of a dataset on the Hub."""
    rows = open_source(find_source(name, split), streaming=False)
    columns = [] if rows is None else rows.column_names
    missing = [column for column in ("question", "answer") if column not in columns]
    if missing:
        raise ValueError(f"{name} has no column {missing[0]!r}: `gsm8k_{split}` has `question` and `answer`.")
    return rows


def _named(task: str, **names: Names | None) -> dict[str, Names]:
    """The names, if all are given."""
    missing = [key for key, name in names.items() if name is None]
    if missing:
        needed = " ".join(f"{key}=FILE" for key in names)
        raise ValueError(f"{task} was not told `{missing[0]}`: add `--metadata {needed}`.")
    return {key: name for key, name in names.items() if name is not None}


__all__ = ["bits_per_byte", "cloze", "cloze_questions", "gsm8k"]

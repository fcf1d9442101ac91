"""Stories with facts woven in that are asked for later: to learn to carry a fact over many sentences.

"The name of the king was Leo." stands somewhere in a document, and again, word for word, some sentences later. Nothing
else in the document holds the value, so whoever does not remember the statement has to guess it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from .documents import load_documents
from .fact_words import KINDS
from .sampled_documents import SPLITS, Fact, check_integer, check_split, write_splits

# A document has so many sentences of stories or more.
FEWEST_SENTENCES = 4

# A question is far from its fact with so many sentences, as `hf_sllm.evaluation.facts` groups them.
FAR = 16

# What is between two sentences, and what the last one ends in.
_BETWEEN = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*(\s+)")
_CLOSED = re.compile(r"[.!?…][\"'”’»)\]]*$")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class WovenFactSettings:
    """What a document is drawn from.

    Attributes:
        sentences: At most so many sentences of stories; their number is drawn log-uniformly from 4 on.
        facts: At most so many facts; their number is drawn uniformly from 1 on.
        questions: At most so many questions, of all facts together; their number is drawn uniformly from 1 on.

    Raises:
        ValueError: If a number is out of range.
    """

    sentences: int = 96
    facts: int = 4
    questions: int = 8

    def __post_init__(self) -> None:
        check_integer("sentences", self.sentences, FEWEST_SENTENCES)
        check_integer("facts", self.facts, 1)
        most = min(len(_OPENINGS["valid"]), *(len(kind.values) for kind in KINDS))
        if self.facts > most:
            raise ValueError(f"`facts` is {self.facts}: no more than {most} can be told apart, so pass at most that.")
        check_integer("questions", self.questions, 1)


@dataclass(frozen=True)
class WovenDocument:
    """A document.

    Attributes:
        sentences: Of stories and of facts; with a space between two they are the text.
        facts: The questions, in the order of the text.
    """

    sentences: list[str]
    facts: list[Fact]

    @property
    def text(self) -> str:
        """The sentences, with a space between two."""
        return " ".join(self.sentences)

    @property
    def row(self) -> dict[str, Any]:
        """What the line of a file holds."""
        return {"text": self.text, "facts": self.facts}

    @property
    def distances(self) -> list[int]:
        """How many sentences before each question the fact was last said, as a statement or as a question."""
        said: dict[int, int] = {}
        found = []
        for fact in self.facts:
            found.append(fact.used - said.get(fact.stated, fact.stated))
            said[fact.stated] = fact.used
        return found


@dataclass
class WovenTotals:
    """What a file of woven facts holds.

    Attributes:
        documents, sentences, questions: How many of each.
        far: Questions 16 or more sentences after the fact was last said.
        bytes: Of the texts, in UTF-8.
    """

    documents: int = 0
    sentences: int = 0
    questions: int = 0
    far: int = 0
    bytes: int = 0

    def add(self, document: WovenDocument) -> None:
        """Counts one more document."""
        self.documents += 1
        self.sentences += len(document.sentences)
        self.questions += len(document.facts)
        self.far += sum(distance >= FAR for distance in document.distances)
        self.bytes += len(document.text.encode())


def write_woven_facts(
    train_source: str | Path | Sequence[str | Path],
    valid_source: str | Path | Sequence[str | Path],
    folder: str | Path,
    documents: int = 20_000,
    valid_documents: int = 400,
    settings: WovenFactSettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, WovenTotals]:
    """Writes `facts.train.jsonl.gz` and `facts.valid.jsonl.gz`: a line for each document, with `text` and `facts`.

    Args:
        train_source: The stories to train on, see `load_documents`; of a dataset on the Hub, its split `train`.
        valid_source: The stories to hold out; of a dataset on the Hub, its split `validation`.
        folder: Where to; it is made if need be. Files of these names are replaced.
        documents: How many to train on.
        valid_documents: How many to hold out. They ask for what no training document asks for.
        settings: What they are drawn from; by default `WovenFactSettings()`.
        seed: Of both files; no seed of the one ever draws what a seed of the other draws.
        progress: Whether to show a progress bar, on standard error.

    Returns:
        What is in each file, by the name of the split.

    Raises:
        ValueError: If a number is out of range, or a source cannot be read or has too few sentences.
    """
    check_integer("documents", documents, 1)
    check_integer("valid_documents", valid_documents, 1)
    check_integer("seed", seed, 0)
    drawn = {}
    for split, source, part, total in (
        ("train", train_source, "train", documents),
        ("valid", valid_source, "validation", valid_documents),
    ):
        stories = load_documents(source, part)["text"][:]
        drawn[split] = (sample_woven_facts(stories, total, settings, seed, split), total)
    return write_splits(folder, "facts", drawn, WovenTotals, progress)


def sample_woven_facts(
    stories: Sequence[str],
    documents: int,
    settings: WovenFactSettings | None = None,
    seed: int = 0,
    split: str = "train",
) -> Iterator[WovenDocument]:
    """Draws documents. Each depends on the stories, the settings, the seed, the split and its own number alone.

    Args:
        stories: Texts, in an order that says which one follows which.
        documents: How many. More begin with the same ones.
        settings: What they are drawn from; by default `WovenFactSettings()`.
        seed: A whole number of at least 0.
        split: `train` or `valid`. The facts of one have other openings than those of the other, and the draws of one
            have nothing to do with those of the other, whatever their seeds.

    Raises:
        ValueError: If a number is out of range, there is no such split, or, when the turn of a document comes, the
            stories have too few sentences for it.
    """
    settings = settings or WovenFactSettings()
    check_integer("documents", documents, 1)
    check_integer("seed", seed, 0)
    if not len(stories):
        raise ValueError("`stories` is empty: give at least one.")
    check_split(split)
    # Python seeds by a hash of its own for text, the same in every process.
    return (
        draw_woven_facts(random.Random(f"woven facts {split} {seed} {index}"), stories, settings, split)
        for index in range(documents)
    )


def draw_woven_facts(
    rng: random.Random, stories: Sequence[str], settings: WovenFactSettings, split: str
) -> WovenDocument:
    """Draws one document."""
    facts = _draw_facts(rng, rng.randint(1, settings.facts), split)
    asked = Counter(rng.randrange(len(facts)) for _ in range(rng.randint(1, settings.questions)))
    length = _log_uniform(rng, FEWEST_SENTENCES, settings.sentences)
    fillers = _fillers(stories, rng, length, [value for _, value in facts])
    # Where each fact is said: before which filler, and in which order if several are said there.
    said = sorted(
        (place, rng.random(), fact) for fact in range(len(facts)) for place in _places(rng, asked[fact], length)
    )
    return _woven(fillers, [(place, facts[fact]) for place, _, fact in said])


# The openings of each split, with what can follow.
_OPENINGS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    split: [(kind.opening.format(subject=subject), kind.values) for kind in KINDS for subject in getattr(kind, split)]
    for split in SPLITS
}


def _draw_facts(rng: random.Random, count: int, split: str) -> list[tuple[str, str]]:
    """So many openings, each with its value; no two of either are the same."""
    facts: list[tuple[str, str]] = []
    taken: set[str] = set()
    for opening, values in rng.sample(_OPENINGS[split], count):
        value = rng.choice([value for value in values if value not in taken])
        taken.add(value)
        facts.append((opening, value))
    return facts


def _places(rng: random.Random, questions: int, fillers: int) -> Iterable[int]:
    """Before which fillers a fact is said: `questions + 1` numbers from 0 to `fillers`, the lowest first.

    The distances from one to the next are drawn before the place of the first one: drawn later, they would have to be
    shorter, for a fact that is stated late leaves little room.
    """
    room = fillers
    gaps = []
    for _ in range(questions):
        gaps.append(_log_uniform(rng, 1, room + 1) - 1)
        room -= gaps[-1]
    rng.shuffle(gaps)
    return accumulate(gaps, initial=rng.randint(0, room))


def _log_uniform(rng: random.Random, least: int, most: int) -> int:
    """A whole number whose logarithm is about evenly spread."""
    return min(most, int(least * ((most + 1) / least) ** rng.random()))


def _fillers(stories: Sequence[str], rng: random.Random, count: int, values: list[str]) -> list[str]:
    """So many sentences without any of the values: a random story's, then those of the stories after it."""
    first = rng.randrange(len(stories))
    words = {value.lower() for value in values}
    found = list(
        islice(
            (
                sentence
                for index in range(len(stories))
                for sentence in split_sentences(stories[(first + index) % len(stories)])
                if words.isdisjoint(_WORD.findall(sentence.lower()))
            ),
            count,
        )
    )
    if len(found) < count:
        raise ValueError(
            f"the stories have {len(found)} sentences without {', '.join(values)}, and a document needs {count}: give "
            "more stories, or a smaller number of `sentences`."
        )
    return found


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a text, with one space where there is white space; what is not closed at the end is left out.

    A sentence ends in `.`, `!`, `?` or `…` and closing quotes or brackets, before white space that no small letter
    follows: `"Stop!" he said.` is one.
    """
    begin = 0
    for between in _BETWEEN.finditer(text):
        if not text[between.end() : between.end() + 1].islower():
            yield " ".join(text[begin : between.start(1)].split())
            begin = between.end()
    rest = " ".join(text[begin:].split())
    if _CLOSED.search(rest):
        yield rest


def _woven(fillers: list[str], said: list[tuple[int, tuple[str, str]]]) -> WovenDocument:
    """Fillers with facts among them: before which filler, then the opening and the value; the first ones first."""
    sentences: list[str] = []
    facts: list[Fact] = []
    stated: dict[str, int] = {}
    done = size = 0  # fillers, and bytes with a space after each sentence
    for place, (opening, value) in said:
        between = fillers[done:place]
        sentences += between
        size += sum(len(sentence.encode()) + 1 for sentence in between)
        done = place
        here = len(sentences)
        if opening in stated:
            start = size + len(opening.encode()) + 1
            facts.append(Fact(stated[opening], here, start, start + len(value.encode())))
        else:
            stated[opening] = here
        sentences.append(f"{opening} {value}.")
        size += len(sentences[-1].encode()) + 1
    return WovenDocument([*sentences, *fillers[done:]], facts)

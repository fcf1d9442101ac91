"""Casts: documents whose later sentences follow from their beginning, with the exact cost of remembering it or not.

A document introduces a cast: people, each with a name, a coloured thing, a pet, a home and a favourite food, in
shuffled sentences. Sentences about nobody may come next. Then one half of the sentences is about a person drawn anew
each time: once the name is known, all else that such a sentence says follows from the introduction.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from .sampled_documents import Fact, check_integer, check_split, write_splits

# What a person has, and what it can be. All words of all lists differ, so each tells what and whose it is.
LISTS = {
    key: tuple(words.split())
    for key, words in {
        "name": "Anna Ben Carl Dora Emma Finn Greta Hugo Ida Jack Karl Lena Max Nora Otto Paul Rosa Sam Tess Uma Vera "
        "Walt Yara Zoe Adam Bella Clara Dan Eve Fred Gina Hans Iris Jon Kate Leo Mia Ned Olga Pia Ralf Sue Tim Ute "
        "Vic Will Xena Yves Alma Bob Cora Dirk Elsa Frank Gus Hilda Ivo Jane Kurt Lisa Mark Nina Oskar Petra",
        "colour": "red blue green black white brown pink grey yellow purple orange golden silver dark pale bright",
        "thing": "ball boat drum kite lamp cup hat ring coat bell book bag box chair clock comb crown desk doll door "
        "fan flag flute fork glass glove key knife mask mat mirror mug needle net oar pan pen pillow pipe plate pot "
        "purse rope rug sack scarf shell shield shoe spoon stick stone sword table tent top torch towel toy tray vase "
        "wheel whistle wagon",
        "pet": "dog cat goat hen duck goose horse mule frog toad snake mouse rat rabbit pig lamb crow owl parrot "
        "turtle fish fox bear wolf deer donkey camel monkey spider bee ant snail",
        "home": "river hill lake wood sea mill bridge church tower market school road field farm garden cave well "
        "harbour castle station park swamp beach valley cliff square inn barn island pond forest mountain",
        "food": "plums apples pears nuts bread cheese soup rice beans corn cakes eggs honey milk peas figs dates "
        "grapes melons carrots onions olives butter noodles cherries berries lemons pies jam toast ham stew",
    }.items()
}

# Each person is introduced by all of these.
INTRODUCTION = (
    "{name} has the {colour} {thing}.",
    "{name} keeps the {pet}.",
    "{name} lives by the {home}.",
    "{name} likes {food} best.",
)

# What is said about a person later. The name comes first: the other words follow from it.
ABOUT = (
    "{name} took the {colour} {thing} and went out.",
    "{name} came home to the {home} and fed the {pet}.",
    "{name} asked for {food} again.",
    "{name} lost the {colour} {thing} near the {home}.",
    "{name} shared some {food} with the {pet}.",
    "{name} called the {pet} and walked to the {home}.",
    "{name} hid the {thing} under the {food}.",
    "{name} gave the {pet} a name.",
)

# What has nothing to do with anybody.
FILLER = (
    "It was a sunny day.",
    "Then it began to rain.",
    "The wind blew all night.",
    "Nobody said a word.",
    "They all laughed out loud.",
    "The sun went down at last.",
    "It was time to go.",
    "Everyone was very tired.",
    "A bell rang far away.",
    "The next day was cold.",
    "Snow fell on the roofs.",
    "They sat by the fire.",
    "It grew dark early.",
    "There was a loud noise.",
    "The stars came out.",
    "Someone knocked at the door.",
    "They sang an old song.",
    "The street was empty.",
    "It smelled of smoke.",
    "They waited for a long time.",
    "Nothing happened for an hour.",
    "The clouds were low and grey.",
    "They told each other stories.",
    "Soon it was morning again.",
    "The fog did not lift.",
    "It was a holiday.",
    "They danced until midnight.",
    "The leaves turned yellow.",
    "A cart rolled past.",
    "They were hungry and cold.",
    "The moon was full.",
    "All was well.",
)


@dataclass(frozen=True)
class CastSettings:
    """What a document is drawn from.

    Attributes:
        cast: How many people there are.
        words: So many of the first words of each list are used; a shorter list is used whole.
        sentences: How many sentences follow on average; at least one does. After each, the document ends with
            probability `1 / sentences`.
        distance: How many sentences about nobody come before these, right after the introduction.

    Raises:
        ValueError: If a number is out of range.
    """

    cast: int = 4
    words: int = 64
    sentences: float = 40.0
    distance: int = 0

    def __post_init__(self) -> None:
        longest, shortest = (limit(map(len, LISTS.values())) for limit in (max, min))
        check_integer("words", self.words, 1)
        if self.words > longest:
            raise ValueError(f"`words` is {self.words}: the longest list has {longest}, so pass at most that.")
        check_integer("cast", self.cast, 1)
        most = min(self.words, shortest)
        if self.cast > most:
            hint = "pass fewer people, or more `words`" if self.words < shortest else "pass at most that"
            raise ValueError(f"`cast` is {self.cast}, and there are {most} words to tell people apart by: {hint}.")
        if not 1 <= self.sentences < math.inf:
            raise ValueError(f"`sentences` is {self.sentences}: it must be a number of at least 1.")
        check_integer("distance", self.distance, 0)

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The words that are used."""
        return {key: words[: self.words] for key, words in LISTS.items()}


@dataclass(frozen=True)
class CastDocument:
    """A document, and what it costs.

    Attributes:
        text: Its sentences, with a space between two.
        bits: Minus log2 of the probability of this text and its end: the least that any writer can pay on average.
        bits_forgetful: The same for the best writer who sees nothing before the sentence that is being written, and
            knows how many there were: each word is drawn from its whole list whenever it comes up.
        facts: The words that a writer who remembers knows and a forgetful one does not, in the order of the text.
            Names are not among them: who comes next is drawn.
    """

    text: str
    bits: float
    bits_forgetful: float
    facts: list[Fact]

    @property
    def row(self) -> dict[str, Any]:
        """What the line of a file holds."""
        return vars(self)


@dataclass
class CastTotals:
    """What a file of casts holds.

    Attributes:
        documents, sentences, facts: How many of each.
        bytes: Of the texts, in UTF-8.
        bits, bits_forgetful: Sums of those of the documents.
    """

    documents: int = 0
    sentences: int = 0
    facts: int = 0
    bytes: int = 0
    bits: float = 0.0
    bits_forgetful: float = 0.0

    def add(self, document: CastDocument) -> None:
        """Counts one more document."""
        self.documents += 1
        self.sentences += document.text.count(".")
        self.facts += len(document.facts)
        self.bytes += len(document.text.encode())
        self.bits += document.bits
        self.bits_forgetful += document.bits_forgetful

    @property
    def floor(self) -> float:
        """Bits per byte of a writer who remembers: no model can pay less on average."""
        return self.bits / self.bytes

    @property
    def forgetful(self) -> float:
        """Bits per byte of the best writer who sees nothing before the sentence that is being written."""
        return self.bits_forgetful / self.bytes


def write_casts(
    folder: str | Path,
    documents: int = 6000,
    valid_documents: int = 400,
    settings: CastSettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, CastTotals]:
    """Writes `casts.train.jsonl.gz` and `casts.valid.jsonl.gz`: a line for each document, with the fields of it.

    Args:
        folder: Where to; it is made if need be. Files of these names are replaced.
        documents: How many to train on.
        valid_documents: How many to hold out.
        settings: What they are drawn from; by default `CastSettings()`.
        seed: Of both files; no seed of the one ever draws what a seed of the other draws.
        progress: Whether to show a progress bar, on standard error.

    Returns:
        What is in each file, by the name of the split.

    Raises:
        ValueError: If a number is out of range.
    """
    settings = settings or CastSettings()
    check_integer("valid_documents", valid_documents, 1)
    drawn = {
        "train": (sample_casts(documents, settings, seed, "train"), documents),
        "valid": (sample_casts(valid_documents, settings, seed, "valid"), valid_documents),
    }
    return write_splits(folder, "casts", drawn, CastTotals, progress)


def sample_casts(
    documents: int, settings: CastSettings | None = None, seed: int = 0, split: str = "train"
) -> Iterator[CastDocument]:
    """Draws documents. Each depends on the settings, the seed, the split and its own number alone.

    Args:
        documents: How many. More begin with the same ones.
        settings: What they are drawn from; by default `CastSettings()`.
        seed: A whole number of at least 0.
        split: `train` or `valid`. The draws of one have nothing to do with those of the other, whatever their seeds.

    Raises:
        ValueError: If a number is out of range, or there is no such split.
    """
    settings = settings or CastSettings()
    check_integer("documents", documents, 1)
    check_integer("seed", seed, 0)
    check_split(split)
    # Python seeds by a hash of its own for text, the same in every process.
    return (draw_cast(random.Random(f"casts {split} {seed} {index}"), settings) for index in range(documents))


def draw_cast(rng: random.Random, settings: CastSettings) -> CastDocument:
    """Draws one document."""
    draft = _Draft(settings.lists)
    _introduce(draft, settings.cast, rng)
    for _ in range(settings.distance):
        draft.add_filler(rng)
    end = 1 / settings.sentences
    ends = False
    while not ends:
        draft.pay(1)
        if rng.random() < 0.5:
            draft.add_filler(rng)
        else:
            draft.add_about(rng)
        ends = rng.random() < end
        draft.pay(-math.log2(end if ends else 1 - end))
    return CastDocument(" ".join(draft.sentences), draft.bits, draft.bits_forgetful, draft.facts)


class _Person(NamedTuple):
    """What a person has, and in which sentence it was said, both by the name of the list."""

    words: dict[str, str]
    stated: dict[str, int]


class _Draft:
    """A document as it is written, and what it has cost so far."""

    def __init__(self, lists: dict[str, tuple[str, ...]]) -> None:
        self.lists = lists
        self.people: list[_Person] = []
        self.sentences: list[str] = []
        self.bits = self.bits_forgetful = 0.0
        self.facts: list[Fact] = []
        self.length = 0  # characters, with a space after each sentence

    def pay(self, bits: float, bits_forgetful: float | None = None) -> None:
        self.bits += bits
        self.bits_forgetful += bits if bits_forgetful is None else bits_forgetful

    def add(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self.length += len(sentence) + 1

    def add_filler(self, rng: random.Random) -> None:
        self.add(rng.choice(FILLER))
        self.pay(math.log2(len(FILLER)))

    def add_about(self, rng: random.Random) -> None:
        person, template = rng.choice(self.people), rng.choice(ABOUT)
        sentence, spans = _fill(template, person.words)
        here = len(self.sentences)
        for key, (start, end) in spans.items():
            if key != "name":
                self.facts.append(Fact(person.stated[key], here, self.length + start, self.length + end))
        self.add(sentence)
        form = math.log2(len(ABOUT))
        self.pay(form + math.log2(len(self.people)), form + self.word_bits(spans))

    def word_bits(self, keys: Iterable[str]) -> float:
        """What words cost that are drawn from their whole lists."""
        return sum(math.log2(len(self.lists[key])) for key in keys)


def _introduce(draft: _Draft, cast: int, rng: random.Random) -> None:
    """Draws the people, and says all that there is about them."""
    columns = {key: rng.sample(words, cast) for key, words in draft.lists.items()}
    draft.people = [_Person({key: words[i] for key, words in columns.items()}, {}) for i in range(cast)]
    order = [(person, template) for person in draft.people for template in INTRODUCTION]
    rng.shuffle(order)
    # People who change places with all that they have, in the drawing and in the order, leave the text as it is.
    draft.pay(
        sum(math.log2(math.perm(len(words), cast)) for words in draft.lists.values())
        + math.log2(math.factorial(len(order)) // math.factorial(cast)),
        0.0,
    )
    for person, template in order:
        sentence, spans = _fill(template, person.words)
        person.stated.update(dict.fromkeys(spans, len(draft.sentences)))
        draft.add(sentence)
        draft.pay(0.0, math.log2(len(INTRODUCTION)) + draft.word_bits(spans))


def _fill(template: str, words: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A template with its words, and where in the sentence each of them is."""
    sentence, spans = "", {}
    for literal, key in _pieces(template):
        sentence += literal
        if key is not None:
            spans[key] = (len(sentence), len(sentence) + len(words[key]))
            sentence += words[key]
    return sentence, spans


@cache
def _pieces(template: str) -> Sequence[tuple[str, str | None]]:
    return [(literal, key) for literal, key, _, _ in Formatter().parse(template)]

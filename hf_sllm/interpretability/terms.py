"""What a sentence shows without a model: its words, their pairs, and its form."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

WORD = re.compile(r"\w+(?:['’]\w+)*")

# The most words of each band of lengths.
BANDS = (4, 8, 12, 20)


def sentence_terms(text: str, position: int | None = None) -> frozenset[str]:
    """The terms of a sentence, each as a reader would say it.

    Args:
        text: The sentence.
        position: Its index in its document, from 0; unknown by default.

    Returns:
        Words and pairs of words in quotes, the first and the last word, the band of its length in words, whether it
        has or ends with a quote, a question mark or an exclamation mark, and whether it is among the first three of
        its document.
    """
    words = [word.lower() for word in WORD.findall(text)]
    found = {f'"{word}"' for word in words}
    found |= {f'"{first} {second}"' for first, second in zip(words, words[1:], strict=False)}
    if words:
        found |= {f'first word "{words[0]}"', f'last word "{words[-1]}"'}
    found.add(length_band(len(words)))
    text = text.strip()
    for name, marks in (("a quote", '"“”'), ("a question mark", "?"), ("an exclamation mark", "!")):
        if any(mark in text for mark in marks):
            found.add(name)
            if text[-1] in marks:
                found.add(f"ends with {name}")
    if position is not None and position < 3:
        found.add(f"sentence {position + 1} of its text")
    return frozenset(found)


def length_band(words: int) -> str:
    """The band in which a number of words lies."""
    lowest = 0
    for most in BANDS:
        if words <= most:
            return f"{lowest} to {most} words"
        lowest = most + 1
    return f"more than {BANDS[-1]} words"


def contrast(positives: Sequence[frozenset[str]], negatives: Sequence[frozenset[str]], best: int = 30) -> list[str]:
    """The terms that positives have and negatives have not: by log odds ratio over its standard error, ½ added to each
    count, the strongest first."""
    inside, outside = Counter(t for one in positives for t in one), Counter(t for one in negatives for t in one)

    def strength(term: str) -> float:
        a, c = inside[term] + 0.5, outside[term] + 0.5
        b, d = len(positives) + 1 - a, len(negatives) + 1 - c
        return math.log(a * d / (b * c)) / math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)

    return sorted(inside, key=lambda term: (-strength(term), term))[:best]


def choose_terms(
    positives: Sequence[frozenset[str]], negatives: Sequence[frozenset[str]], most: int = 10, least_gain: float = 0.002
) -> tuple[str, ...]:
    """Of the most contrasting terms those, one by one, that together tell positives from negatives best.

    A sentence counts as positive if it has any of them. A term is added while balanced accuracy grows by `least_gain`.
    """
    candidates = contrast(positives, negatives)
    chosen: list[str] = []
    missed, clean = list(positives), list(negatives)  # those without any of the chosen
    while len(chosen) < most and candidates:

        def gain(term: str, missed: list = missed, clean: list = clean) -> float:
            caught = sum(term in one for one in missed) / len(positives)
            return (caught - sum(term in one for one in clean) / len(negatives)) / 2

        term = max(candidates, key=gain)
        if gain(term) < least_gain:
            break
        chosen.append(term)
        candidates.remove(term)
        missed, clean = [one for one in missed if term not in one], [one for one in clean if term not in one]
    return tuple(chosen)


class TermWeights:
    """Inverse document frequencies of terms, for cosines between sets of them.

    Args:
        sentences: The terms of each sentence.
    """

    def __init__(self, sentences: Sequence[frozenset[str]]):
        counts = Counter(term for one in sentences for term in one)
        self.squares = {term: math.log((1 + len(sentences)) / (1 + n)) ** 2 for term, n in counts.items()}

    def cosine(self, one: Iterable[str], profile: Mapping[str, float]) -> float:
        """Between a sentence's terms and weighted ones; the profile's own length, the same for all, is left out."""
        one = list(one)
        norm = math.sqrt(sum(self.squares.get(term, 0.0) for term in one))
        shared = sum(self.squares.get(term, 0.0) * profile[term] for term in one if term in profile)
        return shared / norm if norm > 0 else 0.0


__all__ = ["TermWeights", "choose_terms", "contrast", "sentence_terms"]

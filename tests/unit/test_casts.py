"""Casts cost exactly what they say, depend on nothing but seed and settings, and tell where memory is asked for."""

import functools
import gzip
import hashlib
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.data import CastSettings, casts, load_documents, sample_casts, write_casts
from hf_sllm.evaluation import entropy_floor

# So few words and sentences that all documents can be gone through.
FEW = {
    "LISTS": {"name": ("Anna", "Ben", "Carl"), "pet": ("dog", "cat", "hen"), "food": ("eggs", "rice")},
    "INTRODUCTION": ("{name} keeps the {pet}.", "{name} likes {food}."),
    "ABOUT": ("{name} fed the {pet}.", "{name} gave {food} to the {pet}."),
    "FILLER": ("It rained.", "All was well."),
}
EVERY_SETTING = [
    CastSettings(cast, words, sentences, distance)
    for cast, words in ((1, 1), (1, 64), (2, 2), (4, 20), (16, 16))
    for sentences in (1, 2.5, 30)
    for distance in (0, 1, 20)
]


@pytest.fixture
def few(monkeypatch):
    for name, value in FEW.items():
        monkeypatch.setattr(casts, name, value)


@functools.cache
def matched(templates, sentence):
    """The template that a sentence was made of, and its words; None if of none of them."""
    for template in templates:
        found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>\\w+)", template.replace(".", r"\.")), sentence)
        if found:
            return template, found.groupdict()
    return None


def probabilities(text, settings):
    """Of a text and its end: by a writer who remembers, and by one who forgets, sentence after sentence.

    Knows the templates and the lists, and nothing of how documents are drawn: what comes next follows from what came.
    """
    lists = {key: words[: settings.words] for key, words in casts.LISTS.items()}
    sentences = re.findall(r"[^.]+\.", text.replace(". ", "."))
    known: dict[str, dict[str, str]] = {}  # of each name
    said = set()
    remembering = forgetful = Fraction(1)
    introduction = settings.cast * len(casts.INTRODUCTION)
    for index, sentence in enumerate(sentences[:introduction]):
        template, words = matched(casts.INTRODUCTION, sentence)
        assert all(word in lists[key] for key, word in words.items())
        forgetful /= len(casts.INTRODUCTION) * math.prod(len(lists[key]) for key in words)
        name = words["name"]
        left = introduction - index
        if name in known:
            remembering *= 0 if (name, template) in said else Fraction(1, left)
        else:
            remembering *= Fraction(settings.cast - len(known), left)
            remembering *= Fraction(1, len(lists["name"]) - len(known)) if len(known) < settings.cast else 0
        said.add((name, template))
        for key, word in words.items():
            if key != "name":
                taken = {has[key] for has in known.values() if key in has}
                remembering *= 0 if word in taken else Fraction(1, len(lists[key]) - len(taken))
        known.setdefault(name, {}).update(words)
    for sentence in sentences[introduction : introduction + settings.distance]:
        assert sentence in casts.FILLER
        remembering, forgetful = remembering / len(casts.FILLER), forgetful / len(casts.FILLER)
    end = 1 / Fraction(settings.sentences)
    rest = sentences[introduction + settings.distance :]
    for index, sentence in enumerate(rest):
        if sentence in casts.FILLER:
            price = Fraction(1, 2 * len(casts.FILLER))
            remembering, forgetful = remembering * price, forgetful * price
        else:
            _, words = matched(casts.ABOUT, sentence)
            assert all(word in lists[key] for key, word in words.items())
            follows = all(known.get(words["name"], {}).get(key) == word for key, word in words.items())
            remembering *= Fraction(follows, 2 * len(casts.ABOUT) * settings.cast)
            forgetful /= 2 * len(casts.ABOUT) * math.prod(len(lists[key]) for key in words)
        price = end if index == len(rest) - 1 else 1 - end
        remembering, forgetful = remembering * price, forgetful * price
    return remembering, forgetful


def bits(probability):
    """Also of one that is too small for a float."""
    return math.log2(probability.denominator) - math.log2(probability.numerator)


@pytest.mark.parametrize("settings", EVERY_SETTING, ids=str)
def test_both_costs_are_what_another_reckoning_finds(settings):
    for document in sample_casts(20, settings, seed=3):
        remembering, forgetful = probabilities(document.text, settings)
        assert document.bits == pytest.approx(bits(remembering), rel=1e-12)
        assert document.bits_forgetful == pytest.approx(bits(forgetful), rel=1e-12)


class EveryDraw:
    """In the place of a generator: takes the first way at each turn, and the next one the next time.

    A number between 0 and 1 is below one half, or not; other odds are not asked for here.
    """

    def __init__(self, longest):
        self.ways: list[list[int]] = []  # which, of how many
        self.longest = longest

    def documents(self, settings):
        """All documents of not too many draws, with the probability of their draws."""
        while True:
            self.turn = 0
            try:
                document = casts.draw_cast(self, settings)
                yield document, Fraction(1, math.prod(count for _, count in self.ways))
            except TooLongError:
                pass
            while self.ways and self.ways[-1][0] == self.ways[-1][1] - 1:
                self.ways.pop()
            if not self.ways:
                return
            self.ways[-1][0] += 1

    def draw(self, count):
        if self.turn == self.longest:
            raise TooLongError
        if self.turn == len(self.ways):
            self.ways.append([0, count])
        self.turn += 1
        return self.ways[self.turn - 1][0]

    def random(self):
        return (0.25, 0.75)[self.draw(2)]

    def choice(self, values):
        return values[self.draw(len(values))]

    def sample(self, values, count):
        left = list(values)
        return [left.pop(self.draw(len(left))) for _ in range(count)]

    def shuffle(self, values):
        values[:] = self.sample(values, len(values))


class TooLongError(Exception):
    pass


@pytest.mark.parametrize(
    "settings, longest, share",
    [
        (CastSettings(1, 2, 1, 0), 100, 1),
        (CastSettings(1, 2, 2, 1), 14, Fraction(3, 4)),  # not those of more than two sentences at the end
        (CastSettings(2, 2, 1, 0), 100, 1),
        (CastSettings(2, 3, 1, 1), 100, 1),
    ],
    ids=str,
)
def test_each_text_is_drawn_as_often_as_its_bits_say(few, settings, longest, share):
    """Over all draws there are: the probabilities of all that lead to a text add up to what its bits say."""
    drawn: Counter = Counter()
    told = {}
    for document, probability in EveryDraw(longest).documents(settings):
        drawn[document.text] += probability
        assert told.setdefault(document.text, document.bits) == document.bits
    assert sum(drawn.values()) == share
    wrong = [text for text, found in drawn.items() if told[text] != pytest.approx(bits(found), abs=1e-9)]
    assert wrong == []
    assert sum(2**-cost for cost in told.values()) == pytest.approx(float(share), abs=1e-9)


def filled(templates, lists):
    """All sentences that can be made of templates."""
    for template in templates:
        keys = re.findall(r"\{(\w+)\}", template)
        for words in itertools.product(*(lists[key] for key in keys)):
            yield template.format(**dict(zip(keys, words, strict=True)))


@pytest.mark.parametrize(
    "settings, longest, share",
    [
        (CastSettings(1, 2, 2, 1), 2, Fraction(3, 4)),
        (CastSettings(1, 3, 1, 2), 1, 1),
        (CastSettings(2, 2, 1, 0), 1, 1),
    ],
    ids=str,
)
def test_both_writers_spend_all_their_probability(few, settings, longest, share):
    """Over all texts that can be written with at most so many sentences at the end; most of them forget something."""
    begin = itertools.product(list(filled(casts.INTRODUCTION, settings.lists)), repeat=2 * settings.cast)
    between = list(itertools.product(casts.FILLER, repeat=settings.distance))
    follow = [*casts.FILLER, *filled(casts.ABOUT, settings.lists)]
    ends = [end for count in range(1, longest + 1) for end in itertools.product(follow, repeat=count)]
    totals = [Fraction(0), Fraction(0)]
    for parts in itertools.product(begin, between, ends):
        for index, found in enumerate(probabilities(" ".join(itertools.chain(*parts)), settings)):
            totals[index] += found
    assert totals == [share, share]


def test_the_mean_costs_are_the_entropies():
    """The entropies by hand: what is drawn, how often, from how many."""
    settings = CastSettings(cast=3, words=20, sentences=6, distance=4)
    found = list(sample_casts(4000, settings, seed=5))
    sizes = {"name": 20, "colour": 16, "thing": 20, "pet": 20, "home": 20, "food": 20}
    log2 = math.log2
    orders = log2(math.factorial(12) / math.factorial(3))
    words = sum(log2(size * (size - 1) * (size - 2)) for size in sizes.values())
    decisions = 6 * (-1 / 6 * log2(1 / 6) - 5 / 6 * log2(5 / 6))
    fillers = 5 * (4 + 6 / 2)  # 32 of them
    about = 6 / 2
    entropy = orders + words + decisions + fillers + 6 + about * (3 + log2(3))

    def cost(*keys):
        return sum(log2(sizes[key]) for key in keys)

    four = cost("name", "colour", "thing") + cost("name", "pet") + cost("name", "home") + cost("name", "food")
    eight = 8 * cost("name") + 2 * cost("colour") + 3 * cost("thing") + 4 * cost("pet") + 3 * cost("home")
    eight += 3 * cost("food")
    forgetful = 12 * 2 + 3 * four + decisions + fillers + 6 + about * (3 + eight / 8)
    for costs, expected in (
        ([document.bits for document in found], entropy),
        ([document.bits_forgetful for document in found], forgetful),
    ):
        error = statistics.stdev(costs) / math.sqrt(len(costs))
        assert abs(statistics.mean(costs) - expected) < 3.5 * error


def test_only_a_word_that_was_stated_is_worth_remembering():
    """One person of one word each is known without any introduction."""
    for document in sample_casts(20, CastSettings(cast=1, words=1, sentences=4)):
        order = math.log2(24)  # the introduction's sentences differ, which a forgetful writer does not use
        assert document.bits_forgetful - document.bits == pytest.approx(4 * 2 - order)


@pytest.mark.parametrize("settings", EVERY_SETTING, ids=str)
def test_facts_are_the_words_that_follow_from_the_introduction(settings):
    for document in sample_casts(20, settings, seed=4):
        sentences = re.findall(r"[^.]+\.", document.text.replace(". ", "."))
        introduction = sentences[: 4 * settings.cast]
        expected = []
        begin = 0
        for used, sentence in enumerate(sentences):
            assert document.text[begin : begin + len(sentence)] == sentence
            found = matched(casts.ABOUT, sentence)
            if used >= len(introduction) and found:
                assert used >= len(introduction) + settings.distance
                name, *words = found[1].values()
                for word in words:
                    (stated,) = (
                        index
                        for index, said in enumerate(introduction)
                        if said.startswith(f"{name} ") and re.search(rf"\b{word}\b", said)
                    )
                    start = begin + re.search(rf"\b{word}\b", sentence).start()
                    expected.append((stated, used, start, start + len(word)))
            begin += len(sentence) + 1
        assert document.facts == expected


def test_words_tell_what_and_whose_they_are():
    """No word is in two lists, and no sentence could be of two kinds."""
    words = [word for values in casts.LISTS.values() for word in values]
    assert len(set(words)) == len(words)
    templates = (*casts.INTRODUCTION, *casts.ABOUT, *casts.FILLER)
    example = {key: values[0] for key, values in casts.LISTS.items()}
    for template in templates:
        assert matched(templates, template.format(**example))[0] == template
        assert template.index(".") == len(template) - 1


def test_a_document_does_not_depend_on_how_many_there_are():
    assert list(sample_casts(3)) == list(sample_casts(10))[:3]


def test_documents_of_all_seeds_and_both_splits_differ():
    texts = [
        document.text
        for seed in range(5)
        for split in ("train", "valid")
        for document in sample_casts(20, seed=seed, split=split)
    ]
    assert len(set(texts)) == len(texts)


def test_documents_are_the_same_in_every_process_and_from_now_on():
    """A change here makes another test bed of equal name: figures on the two cannot be compared."""
    code = (
        "import hashlib, sys, types\n"
        "data = sys.modules['data'] = types.ModuleType('data')\n"  # not all of hf_sllm: torch takes long to import
        "data.__path__ = [sys.argv[1]]\n"
        "from data.casts import sample_casts\n"
        "print(hashlib.sha256(repr([vars(d) for d in sample_casts(20)]).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr([vars(document) for document in sample_casts(20)]).encode()).hexdigest()
    found = [
        subprocess.run(
            [sys.executable, "-c", code, str(Path(casts.__file__).parent)],
            env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found == [here, here]
    texts = "\n".join(document.text for document in sample_casts(20))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "8a2b1ca0bf5269a4"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cast": 0}, "`cast` is 0: it must be a whole number of at least 1"),
        ({"cast": 9, "words": 8}, "`cast` is 9, and there are 8 words to tell people apart by: .*more `words`"),
        ({"cast": 17}, "`cast` is 17, and there are 16 words .*: pass at most that"),
        ({"words": 65}, "`words` is 65: the longest list has 64"),
        ({"words": 2.5}, "`words` is 2.5: it must be a whole number"),
        ({"sentences": 0.5}, "`sentences` is 0.5: it must be"),
        ({"sentences": float("nan")}, "`sentences` is nan"),
        ({"distance": -1}, "`distance` is -1: it must be"),
        ({"documents": 0}, "`documents` is 0: it must be"),
        ({"seed": -1}, "`seed` is -1: it must be"),
        ({"split": "test"}, "`split` is 'test': it must be one of train, valid"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    arguments = {key: changes.pop(key) for key in ("documents", "seed", "split") if key in changes}
    with pytest.raises(ValueError, match=message):
        sample_casts(**{"documents": 1, **arguments}, settings=CastSettings(**changes))


def run(*arguments):
    return CliRunner().invoke(app, ["data", "casts", *map(str, arguments)])


def test_the_command_writes_both_files_and_says_what_they_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    options = ("--documents", 30, "--valid-documents", 10, "--cast", 2, "--words", 8, "--sentences", 5, "--seed", 7)
    settings = CastSettings(cast=2, words=8, sentences=5)
    result = run("--output", tmp_path / "a", *options)
    assert result.exit_code == 0, result.output
    for split, count in (("train", 30), ("valid", 10)):
        file = tmp_path / "a" / f"casts.{split}.jsonl.gz"
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        expected = [vars(document) for document in sample_casts(count, settings, seed=7, split=split)]
        assert rows == [{**row, "facts": [list(fact) for fact in row["facts"]]} for row in expected]
        documents = load_documents(file)
        assert documents["text"][:] == [row["text"] for row in rows]
        assert f"{entropy_floor(documents):.4f}" in result.stdout
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "casts.train.jsonl.gz", "casts.valid.jsonl.gz",
    ]  # fmt: skip
    run("--output", tmp_path / "b", *options)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_command_refuses_before_it_writes(tmp_path):
    for options, message in ((("--cast", 0), "`cast` is 0"), (("--valid-documents", 0), "`valid_documents` is 0")):
        result = run("--output", tmp_path / "new", *options)
        assert result.exit_code == 1
        assert message in result.stderr
        assert not (tmp_path / "new").exists()


def test_a_file_is_there_only_when_it_is_whole(tmp_path, monkeypatch):
    write_casts(tmp_path, 3, 3, progress=False)
    before = (tmp_path / "casts.train.jsonl.gz").read_bytes()

    def broken(rng, settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(casts, "draw_cast", broken)
    with pytest.raises(KeyboardInterrupt):
        write_casts(tmp_path, 5, 5, progress=False)
    assert (tmp_path / "casts.train.jsonl.gz").read_bytes() == before

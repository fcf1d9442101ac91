"""Woven facts: stated once, said nowhere else, asked for near and far; what is measured on is not trained on."""

import gzip
import json
import re
from itertools import combinations

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.data import load_documents
from hf_sllm.data.fact_words import KINDS
from hf_sllm.data.statistics import ids_and_bytes
from hf_sllm.data.woven_facts import WovenFactSettings, sample_woven_facts, split_sentences
from hf_sllm.embedded import embedded_checkpoint
from hf_sllm.evaluation.context import QUESTIONS

# Sentences that differ, some with values in them, and with characters of two, three and four bytes.
STORIES = [
    " ".join(f"Café {story} – “née {line}” 😀 und {word}." for line, word in enumerate(words))
    for story, words in enumerate([["Lily", "red", "ball", "Cat!", "nothing", "RED's", "Überall"] * 6] * 30)
]
FILLERS = {sentence for story in STORIES for sentence in split_sentences(story)}
SETTINGS = WovenFactSettings(sentences=96, facts=4, questions=8)


def sample(count=200, split="train", settings=SETTINGS, seed=0, stories=STORIES):
    return list(sample_woven_facts(stories, count, settings, seed, split))


def parsed(sentence):
    """The opening and the value of a fact, or None of a filler."""
    return None if sentence in FILLERS else sentence.removesuffix(".").rsplit(" ", 1)


def words(text):
    return re.findall(r"\w+", text.lower())


def openings(split):
    return {kind.opening.format(subject=subject) for kind in KINDS for subject in getattr(kind, split)}


def nouns(texts):
    """The words that tell openings apart."""
    common = set(words("The name color thing animal gift of in on under from the a was Aunt Uncle"))
    return {word for text in texts for word in words(text)} - common


def test_a_document_depends_on_settings_seed_split_and_number_alone():
    assert sample(3) == sample(10)[:3]
    others = [sample(3), sample(3, "valid"), sample(3, seed=1), sample(3, settings=WovenFactSettings(50))]
    assert all(one != other for one, other in combinations(others, 2))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_facts_are_all_that_is_said_again_and_tell_where(split):
    for document in sample(split=split):
        assert document.text == " ".join(document.sentences)
        said: dict[str, tuple[int, str]] = {}
        expected = []
        for index, sentence in enumerate(document.sentences):
            if found := parsed(sentence):
                opening, value = found
                stated, known = said.setdefault(opening, (index, value))
                assert value == known
                if stated != index:
                    end = len(" ".join(document.sentences[: index + 1]).encode()) - len(".")
                    expected.append((stated, index, end - len(value.encode()), end))
        assert document.facts == expected
        content = document.text.encode()
        for stated, _, start, end in document.facts:
            assert content[start:end].decode() == parsed(document.sentences[stated])[1]
        assert 1 <= len(said) <= SETTINGS.facts and 1 <= len(document.facts) <= SETTINGS.questions
        assert 4 <= sum(sentence in FILLERS for sentence in document.sentences) <= SETTINGS.sentences


def test_a_value_is_said_by_its_fact_alone():
    for document in sample():
        facts = [parsed(sentence) for sentence in document.sentences]
        values = {opening: value for opening, value in filter(None, facts)}
        assert len(set(values.values())) == len(values)
        for opening, value in values.items():
            saying = [
                fact for fact, text in zip(facts, document.sentences, strict=True) if value.lower() in words(text)
            ]
            assert saying == [[opening, value]] * len(saying)


def test_the_measure_of_facts_finds_the_values():
    """Its tokens that are inside the bytes of a fact are those of the value, with the space before it."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    for document in sample(20):
        ids, ends = ids_and_bytes([document.text], tokenizer)
        begins = np.concatenate([[0], ends[:-1]])
        for stated, _, start, end in document.facts:
            inside = ids[(ends > start) & (begins < end)]
            assert tokenizer.decode(inside).strip() == parsed(document.sentences[stated])[1]


def test_each_number_of_sentences_facts_and_questions_is_drawn():
    found = sample(2000)
    assert {len(document.facts) for document in found} == set(range(1, 9))
    numbers = [sum(sentence in FILLERS for sentence in document.sentences) for document in found]
    assert min(numbers) == 4 and max(numbers) > 90
    # Half of the logarithms from 4 to 96 are below that of 19.6.
    assert 0.45 < sum(number < 20 for number in numbers) / len(numbers) < 0.55


def test_distances_are_spread_and_reach_far():
    """Of one question: log-uniformly from 1 to what the document allows."""
    found = sample(1000, settings=WovenFactSettings(facts=1, questions=1))
    distances = [distance for document in found for distance in document.distances]
    shares = [sum(first <= distance < last for distance in distances) for first, last in ((1, 4), (4, 16), (16, 99))]
    assert min(shares) > 100
    assert max(distances) > 64
    several = [distance for document in sample(1000) for distance in document.distances]
    assert sum(distance > 32 for distance in several) > 50
    assert min(several) == 1


def test_a_distance_is_from_where_the_fact_was_last_said():
    document = next(one for one in sample() if len({fact.stated for fact in one.facts}) < len(one.facts))
    for fact, distance in zip(document.facts, document.distances, strict=True):
        earlier = document.sentences[: fact.used]
        assert earlier[::-1].index(document.sentences[fact.used]) + 1 == distance


def test_what_is_measured_on_is_not_trained_on():
    needle = {opening for opening, _ in QUESTIONS}
    kinds = [re.escape(kind.opening).replace(r"\{subject\}", r"[\w ]+") for kind in KINDS]
    assert all(any(re.fullmatch(kind, opening) for kind in kinds) for opening in needle)
    assert nouns(needle) & nouns(openings("train") | openings("valid")) == set()
    assert nouns(openings("valid")) & nouns(openings("train")) == set()
    text = " ".join(document.text for document in sample(2000))
    assert [opening for opening in {*needle, *openings("valid")} if opening in text] == []
    assert openings("train") - {opening for opening in openings("train") if opening in text} == set()
    held_out = " ".join(document.text for document in sample(400, "valid"))
    assert {opening for opening in {*needle, *openings("train"), *openings("valid")} if f"{opening} " in held_out} == (
        openings("valid")
    )


def test_words_fit_and_are_the_values_of_one_list():
    lists = {kind.values for kind in KINDS}
    values = [value.lower() for one in lists for value in one]
    assert len(set(values)) == len(values)
    assert {word for split in ("train", "valid") for opening in openings(split) for word in words(opening)}.isdisjoint(
        values
    )
    for kind in KINDS:
        assert len(kind.values) == 32 and len(set(kind.train)) == 40 and len(set(kind.valid)) == 6
        assert not kind.opening.endswith(" a") or not [value for value in kind.values if value[0] in "aeiou"]
    for opening, few in QUESTIONS:
        assert any(set(few) < set(kind.values) and kind.opening.split()[1] == opening.split()[1] for kind in KINDS)


def test_sentences_are_cut_where_they_end():
    text = 'He said "Stop!" and ran.\n\n“Why?” Tim  asked…  "No." (It was.) She\nleft... Où? été. Not closed'
    assert list(split_sentences(text)) == [
        'He said "Stop!" and ran.', "“Why?”", "Tim asked…", '"No."', "(It was.)", "She left...", "Où? été.",
    ]  # fmt: skip
    assert list(split_sentences("No end")) == list(split_sentences(" ")) == []
    assert list(split_sentences('"The end." ')) == ['"The end."']


def test_stories_follow_each_other():
    stories = [f"{word} one. {word} two." for word in ("First", "Second", "Third")]
    document = sample(1, settings=WovenFactSettings(sentences=4), stories=stories)[0]
    told = [sentence for sentence in document.sentences if sentence.split()[0] in ("First", "Second", "Third")]
    whole = [sentence for story in stories for sentence in split_sentences(story)]
    assert told in [[*whole, *whole][first : first + 4] for first in (0, 2, 4)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sentences": 3}, "`sentences` is 3: it must be a whole number of at least 4"),
        ({"facts": 0}, "`facts` is 0: it must be a whole number of at least 1"),
        ({"facts": 31}, "`facts` is 31: no more than 30 can be told apart, so pass at most that"),
        ({"questions": 0}, "`questions` is 0: it must be"),
        ({"questions": 2.5}, "`questions` is 2.5: it must be a whole number"),
        ({"documents": 0}, "`documents` is 0: it must be"),
        ({"seed": -1}, "`seed` is -1: it must be"),
        ({"split": "test"}, "`split` is 'test': it must be one of train, valid"),
        ({"stories": []}, "`stories` is empty: give at least one"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    arguments = {key: changes.pop(key) for key in ("documents", "seed", "split", "stories") if key in changes}
    with pytest.raises(ValueError, match=message):
        sample_woven_facts(**{"stories": STORIES, "documents": 1, **arguments}, settings=WovenFactSettings(**changes))


def test_the_most_facts_can_be_drawn_of_both_splits():
    settings = WovenFactSettings(facts=30)
    for split in ("train", "valid"):
        numbers = [len(set(map(str, map(parsed, one.sentences))) - {"None"}) for one in sample(200, split, settings)]
        assert max(numbers) == 30


def test_too_few_sentences_are_refused():
    with pytest.raises(ValueError, match=r"the stories have 2 sentences without .*: give more stories"):
        sample(1, stories=["One. Two."])


def run(*arguments):
    return CliRunner().invoke(app, ["data", "facts", *map(str, arguments)])


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = []
    for name, stories in (("train", STORIES), ("valid", STORIES[::-1])):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in stories))
    return files


def test_the_command_writes_both_files(tmp_path, sources):
    options = (*sources, "--documents", 30, "--valid-documents", 10, "--sentences", 20, "--seed", 7)
    result = run(*options, "--output", tmp_path / "a")
    assert result.exit_code == 0, result.output
    for split, count, stories in (("train", 30, STORIES), ("valid", 10, STORIES[::-1])):
        file = tmp_path / "a" / f"facts.{split}.jsonl.gz"
        expected = sample(count, split, WovenFactSettings(sentences=20), 7, stories)
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        assert rows == [{"text": one.text, "facts": [list(fact) for fact in one.facts]} for one in expected]
        assert load_documents(file)[:] == {key: [row[key] for row in rows] for key in ("text", "facts")}
        assert f" {sum(len(one.facts) for one in expected):,} " in result.stdout
        assert f" {sum(len(one.text.encode()) for one in expected):,} " in result.stdout
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "facts.train.jsonl.gz", "facts.valid.jsonl.gz",
    ]  # fmt: skip
    run(*options, "--output", tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes()[4:8] == bytes(4), "the time is in it"
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_command_refuses_before_it_writes(tmp_path, sources):
    for options, message in (
        (("--facts", 0), "`facts` is 0"),
        (("--valid-documents", 0), "`valid_documents` is 0"),
        (("--seed", -1), "`seed` is -1"),
    ):
        result = run(*sources, "--output", tmp_path / "new", *options)
        assert result.exit_code == 1
        assert message in result.stderr
        assert not (tmp_path / "new").exists()

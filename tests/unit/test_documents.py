"""Every kind of source gives the same documents, at once or as a stream, or says what is wrong with it."""

import gzip
import json

import datasets
import pytest
from torch.utils.data import DataLoader

from hf_sllm.data import load_documents
from hf_sllm.data.documents import ROWS_AT_A_TIME

STREAMING = pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streamed"])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of one's own, for the files and for the cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def write(file, texts, **columns):
    """Writes texts as a file of the kind that its name says."""
    rows = [{"text": text, **columns} for text in texts]
    if file.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(file))
        return file
    lines = texts if ".txt" in file.name else [json.dumps(row) for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def texts_of(*arguments, **options):
    return [document["text"] for document in load_documents(*arguments, **options)]


@STREAMING
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "txt", "txt.gz", "parquet"])
def test_every_kind_of_file_gives_the_same_documents(folder, kind, streaming):
    texts = ["One line.", "Another one."]
    file = write(folder / f"texts.{kind}", texts)
    assert texts_of(file, streaming=streaming) == texts
    assert texts_of(file, limit=1, streaming=streaming) == texts[:1]


@STREAMING
@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
def test_blank_documents_are_left_out_and_not_counted(folder, kind, streaming):
    file = write(folder / f"texts.{kind}", ["", "A.", " \t", "B.", "C."])
    assert texts_of(file, limit=2, streaming=streaming) == ["A.", "B."]


@STREAMING
def test_the_documents_of_several_sources_follow_each_other(folder, streaming):
    for name, texts in {"b-2.jsonl": "E", "b-1.jsonl": "CD", "a.txt": "AB", "c.parquet": "FG"}.items():
        write(folder / name, list(texts))
    sources = [folder / "a.txt", str(folder / "b-*.jsonl"), folder / "c.parquet"]
    assert texts_of(sources, streaming=streaming) == list("ABCDEFG")
    assert texts_of(sources, limit=4, streaming=streaming) == list("ABCD")


@STREAMING
def test_a_file_whose_name_is_a_pattern_is_that_file(folder, streaming):
    write(folder / "part1.jsonl", ["Another."])
    assert texts_of(write(folder / "part[1].jsonl", ["This."]), streaming=streaming) == ["This."]


@STREAMING
def test_a_dataset_with_configs_is_named_with_one(folder, streaming):
    """A folder laid out as a dataset on the Hub is read as one is."""
    dataset = folder / "tales"
    dataset.mkdir()
    for name in ("old", "new"):
        write(dataset / f"{name}.jsonl", [f"An {name} tale."])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("old", "new"))
    (dataset / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert texts_of(f"{dataset}:new", streaming=streaming) == ["An new tale."]
    with pytest.raises(ValueError, match="'odd' not found"):
        load_documents(f"{dataset}:odd", streaming=streaming)


@STREAMING
def test_the_floor_is_kept_and_other_columns_are_not(folder, streaming):
    file = folder / "texts.jsonl"
    file.write_text('{"story": "A.", "text": "no", "bits": 7.5, "id": 3}\n')
    documents = load_documents(file, text_column="story", streaming=streaming)
    assert list(documents) == [{"text": "A.", "bits": 7.5}]


@STREAMING
def test_the_first_document_says_whether_there_is_a_floor(folder, streaming):
    with_bits, without = write(folder / "a.jsonl", ["A."], bits=3), write(folder / "b.jsonl", ["B."])
    assert list(load_documents([with_bits, without], streaming=streaming)) == [
        {"text": "A.", "bits": 3.0},
        {"text": "B.", "bits": None},
    ]
    assert list(load_documents([without, with_bits], streaming=streaming)) == [{"text": "B."}, {"text": "A."}]


def test_a_stream_has_the_columns_of_what_is_cached(folder):
    file = write(folder / "texts.parquet", ["A."], bits=3)
    assert load_documents(file, streaming=True).features == load_documents(file).features


def test_a_stream_is_read_no_further_than_it_is_asked_for(folder):
    """And an error in it names the file and the row."""
    good, bad = folder / "a.jsonl", folder / "b.jsonl"
    write(good, list("ABC"))
    bad.write_text('{"text": "D"}\n{"text": null}\n')
    documents = iter(load_documents([good, bad], streaming=True))
    assert [next(documents)["text"] for _ in range(4)] == list("ABCD")
    with pytest.raises(ValueError, match="row 1 of .*b.jsonl has no text"):
        next(documents)
    assert texts_of([good, bad], limit=4, streaming=True) == list("ABCD")


def test_a_stream_that_breaks_off_names_the_file(folder):
    whole = write(folder / "a.txt.gz", ["A"] * (2 * ROWS_AT_A_TIME))
    broken = folder / "b.txt.gz"
    broken.write_bytes(whole.read_bytes()[:-8])
    documents = load_documents(str(folder / "*.txt.gz"), streaming=True)
    with pytest.raises(ValueError, match="b.txt.gz cannot be read as a dataset: EOFError"):
        list(documents)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_workers_of_a_loader_share_the_documents(folder, workers):
    for name in "abc":
        write(folder / f"{name}.jsonl", [f"{name}{index}" for index in range(20)])
    expected = texts_of(str(folder / "*.jsonl"))

    def loaded(limit):
        documents = load_documents(str(folder / "*.jsonl"), streaming=True, limit=limit)
        return [document["text"] for document in DataLoader(documents, batch_size=None, num_workers=workers)]

    assert sorted(loaded(None)) == sorted(expected)
    assert loaded(25) == expected[:25]


@STREAMING
@pytest.mark.parametrize(
    "name, content, options, message",
    [
        ("absent.jsonl", None, {}, "there is no file .*absent.jsonl"),
        ("*.jsonl", None, {}, r"no file matches .*\*.jsonl"),
        ("texts.docx", "A.", {}, "ends in '.docx'"),
        ("texts.jsonl", '{"story": "A."}\n', {}, "no column 'text', only story"),
        ("texts.jsonl", '{"text": 3}\n', {}, "holds int.*, not text"),
        ("texts.jsonl", '{"text": ["A."]}\n', {}, "holds list, not text"),
        ("texts.jsonl", '{"text": null}\n{"text": "A."}\n', {}, "row 0 of .* has no text"),
        ("texts.jsonl", '{"text": "A."\n', {}, "texts.jsonl cannot be read"),
        ("texts.jsonl.gz", "A.", {}, "texts.jsonl.gz cannot be read.*[Nn]ot a gzipped file"),
        ("texts.parquet", "A.", {}, "texts.parquet cannot be read"),
        ("texts.jsonl", "", {}, "holds no documents"),
        ("texts.jsonl", '{"text": " "}\n', {}, "holds no documents"),
        ("texts.txt", "\n \n", {}, "holds no documents"),
        ("texts.txt", "A.\n", {"limit": 0}, "`limit` is 0"),
    ],
)
def test_what_is_no_set_of_documents_is_refused_with_the_reason(folder, name, content, options, message, streaming):
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_documents(folder / name, streaming=streaming, **options)


@STREAMING
@pytest.mark.parametrize("text", [b"a \\ud800 b", b"a \xff b"], ids=["lone surrogate", "no UTF-8"])
def test_what_is_no_unicode_is_refused_with_the_file(folder, text, streaming):
    file = folder / "texts.jsonl"
    file.write_bytes(b'{"text": "Good."}\n{"text": "' + text + b'"}\n')
    with pytest.raises(ValueError, match="texts.jsonl cannot be read as a dataset"):
        texts_of(file, streaming=streaming)


@STREAMING
@pytest.mark.parametrize("kind", ["json", "json.gz"])
@pytest.mark.parametrize(
    "content",
    [
        r'[{"text": "Good."}, {"text": "a \ud800 b"}]',
        r'["Good.", "a \uDC00\ud800 b"]',
        '{\n"text": ["\\ud83d\\ud83d", "c"]\n}\n',
        '{"text": "Good."}\n{"text": "a \\ud800 b"}\n',
    ],
    ids=["list", "list of texts", "columns", "lines"],
)
def test_a_lone_surrogate_is_refused_however_the_json_is_laid_out(folder, content, kind, streaming):
    file = folder / f"texts.{kind}"
    file.write_bytes(gzip.compress(content.encode()) if kind.endswith("gz") else content.encode())
    with pytest.raises(ValueError, match=f"texts.{kind} cannot be read as a dataset.* surrogate"):
        texts_of(file, streaming=streaming)


@STREAMING
def test_a_whole_surrogate_pair_is_the_character_and_an_escaped_backslash_begins_none(folder, streaming):
    file = folder / "texts.json"
    file.write_text(r'[{"text": "\ud83d\ude00 \\ud800"}]')
    assert texts_of(file, streaming=streaming) == ["😀 \\ud800"]


def test_a_stream_comes_to_a_lone_surrogate_when_its_turn_comes(folder):
    good, bad = write(folder / "a.jsonl", ["A."]), folder / "b.json"
    bad.write_text(r'["\ud800"]')
    documents = iter(load_documents([good, bad], streaming=True))
    assert next(documents) == {"text": "A."}
    with pytest.raises(ValueError, match=r"b.json has a lone surrogate, \\ud800: that is no character"):
        next(documents)


@STREAMING
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_odd_characters_and_long_lines_are_kept(folder, kind, streaming):
    texts = ["a\0b.", "猫。قطة؟ 🐈‍⬛", "word " * 200_000 + "."]
    assert texts_of(write(folder / f"texts.{kind}", texts), streaming=streaming) == texts


@STREAMING
def test_a_broken_gzip_is_refused_with_its_name(folder, streaming):
    file = write(folder / "texts.jsonl.gz", ["A tale."] * 100)
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(ValueError, match="texts.jsonl.gz cannot be read as a dataset: EOFError"):
        load_documents(file, streaming=streaming)


def test_a_pattern_of_several_kinds_of_file_is_refused(folder):
    write(folder / "texts.jsonl", ["A."])
    write(folder / "texts.txt", ["B."])
    with pytest.raises(ValueError, match=r"several kinds, .jsonl, .txt: give a list"):
        load_documents(str(folder / "texts.*"))


def test_an_empty_list_of_sources_is_refused():
    with pytest.raises(ValueError, match="`source` is an empty list"):
        load_documents([])

"""A corpus has each row once, with the same text, however often its run was killed and by how many processes."""

import gzip
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from models import tiny_backbone
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from hf_sllm import SllmForCausalLM
from hf_sllm.cli import app
from hf_sllm.corpus import (
    EmbedSettings,
    Job,
    SentenceEmbedder,
    Shard,
    TextWriter,
    WriteSettings,
    embed_corpus,
    manifest,
    write_corpus,
)
from hf_sllm.corpus.buckets import in_buckets
from hf_sllm.corpus.parts import Folder, Part
from hf_sllm.corpus.sampling import RowSampling, gumbel_noise
from hf_sllm.data import load_documents, train_tokenizer
from hf_sllm.data.source_files import find_source_files, read_tables
from hf_sllm.embedded import embedded_checkpoint

WORDS = ["the", "owl", "said", "no", "and", "two", "mice", "ran", "to", "an", "old", "house", "by", "the", "sea"]
SETTINGS = WriteSettings(max_sentences=3, max_new_tokens=12)


def prompt(number: int) -> str:
    """One to three sentences, the last of which may be open."""
    draw = random.Random(number)
    sentences = [" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(draw.randint(1, 3))]
    return ". ".join(sentences) + draw.choice([".", ""])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([prompt(number) for number in range(200)], 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Its tokens depend on what comes before, so that a wrong seed or row would show."""
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2)
    made = SllmForCausalLM.from_backbone(
        backbone, tokenizer, encoder_layers=1, decoder_layers=2, max_sentence_length=12
    )
    for linear in (made.model.latent_input, made.model.latent_output, made.model.sentence_decoder.latent_prefix):
        linear.weight.data.normal_(std=0.3)
    return made.eval()


@pytest.fixture(scope="module")
def saved(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sllm")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two files of rows, one with ids, and an empty prompt in either."""
    folder = tmp_path_factory.mktemp("data")
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        for number in range(17):
            file.write(json.dumps({"text": "" if number == 5 else prompt(number), "id": f"row {number}"}) + "\n")
    texts = [None if number == 9 else prompt(100 + number) for number in range(14)]
    parquet.write_table(pa.table({"text": texts}), folder / "b.parquet")
    return folder


def job(saved, folder, output, **changes) -> Job:
    names = [str(folder / "a.jsonl.gz"), str(folder / "b.parquet")]
    return Job(**{"model": str(saved), "data": names, "output": output, "part_rows": 4, "progress": False, **changes})


@pytest.fixture(scope="module")
def undisturbed(saved, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "corpus"
    write_corpus(job(saved, data, folder), SETTINGS)
    return folder


def rows_of(folder) -> list[dict]:
    return parquet.read_table(folder).to_pylist()


def contents(folder) -> dict[str, list[dict]]:
    """The rows of each part."""
    return {file.name: parquet.read_table(file).to_pylist() for file in folder.glob("part-*")}


def manifest_of(folder) -> dict:
    return json.loads((folder / "_manifest.json").read_text())


def in_process(function, *arguments) -> multiprocessing.Process:
    """A process of its own, with what is imported here."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def test_each_row_is_there_once_in_order_and_the_manifest_counts_them(undisturbed):
    rows = rows_of(undisturbed)
    assert [row["id"] for row in rows] == [f"row {number}" for number in range(17)] + [
        f"b.parquet:{number}" for number in range(14)
    ]
    found = manifest_of(undisturbed)
    assert found["complete"] and found["rows"] == 31 and found["errors"] == 2
    assert {name: len(part) for name, part in contents(undisturbed).items()} == {
        name: about["rows"] for name, about in found["parts"].items()
    }
    assert found["settings"]["max_sentences"] == 3 and found["settings"]["seed"] == 0


def test_a_row_that_fails_says_why_and_stops_no_other(undisturbed):
    failed = {row["id"]: row["error"] for row in rows_of(undisturbed) if row["error"] is not None}
    assert failed == {"row 5": "the prompt is empty.", "b.parquet:9": "the prompt is empty."}
    assert all((row["written"] is None) == (row["error"] is not None) for row in rows_of(undisturbed))


@pytest.mark.parametrize("kind, max_sentences", [("greedy", 4), ("sampled", 1), ("narrowed", 4)])
def test_a_row_has_the_text_that_it_has_alone_in_any_batch_and_order(kind, max_sentences, model, tokenizer):
    options = {"greedy": {"greedy": True}, "sampled": {}, "narrowed": {"temperature": 1.5, "top_k": 20, "top_p": 0.9}}
    settings = WriteSettings(max_sentences=max_sentences, max_new_tokens=20, **options[kind])
    rows = {"id": [str(number) for number in range(9)], "text": [prompt(number) for number in range(9)]}
    together = TextWriter(model, tokenizer, settings, batch_size=9)(rows)
    backwards = {name: values[::-1] for name, values in rows.items()}
    assert TextWriter(model, tokenizer, settings, batch_size=4)(backwards)["written"] == together["written"][::-1]
    alone = TextWriter(model, tokenizer, settings, batch_size=1)(rows)
    assert alone == together
    assert len(set(together["written"])) == 9
    if max_sentences == 1:  # rows that are done are filled until the last one is
        assert len(set(together["tokens"])) > 1 and set(together["sentences"]) == {1}


def test_sampling_goes_by_the_id_and_the_seed_alone(model, tokenizer):
    def written(row_id: str, seed: int) -> str:
        settings = WriteSettings(max_sentences=4, max_new_tokens=30, seed=seed)
        return TextWriter(model, tokenizer, settings)({"id": [row_id], "text": ["The owl"]})["written"][0]

    assert written("a", 0) == written("a", 0)
    assert len({written("a", 0), written("b", 0), written("a", 1)}) == 3


def test_what_is_drawn_has_the_distribution_of_the_scores():
    """Within four standard errors, for each token; at both lengths, whose draws do not depend on each other."""
    rows, scores = 20_000, torch.tensor([0.5, -1.0, 2.0, 0.0, -torch.inf, 1.0])
    probabilities = (scores / 0.8).softmax(-1)
    sampling = RowSampling(list(range(rows)), prompt_length=3, pad_token_id=9, temperature=0.8)
    first = sampling(torch.zeros(rows, 3).long(), scores.repeat(rows, 1)).argmax(-1)
    second = sampling(torch.zeros(rows, 4).long(), scores.repeat(rows, 1)).argmax(-1)
    joint = torch.bincount(first * 6 + second, minlength=36).view(6, 6) / rows
    expected = probabilities[:, None] * probabilities
    assert ((joint - expected).abs() <= 4 * (expected * (1 - expected) / rows).sqrt()).all()


def test_noise_is_gumbel_noise():
    noise = gumbel_noise(torch.arange(-50, 50), written=7, vocab_size=1000).flatten()
    for value in (-1.0, 0.0, 1.0, 3.0):
        expected = np.exp(-np.exp(-value))
        assert abs((noise <= value).double().mean().item() - expected) < 4 * (expected * (1 - expected) / 1e5) ** 0.5


def test_rows_of_like_length_are_together_and_no_row_changes_its_part(undisturbed, model, tokenizer):
    lengths = [3, 50, 4, 49, 5, 51]
    batches, done = [], []
    results = in_buckets(lambda batch: batches.append(batch) or batch, lengths, int, 2, done.append)
    assert results == lengths and batches == [[51, 50], [49, 5], [4, 3]] and done == [2, 2, 2]
    assert [row["id"] for row in contents(undisturbed)["part-00000-00001.parquet"]] == [
        f"row {number}" for number in range(4, 8)
    ]


def test_one_bad_item_costs_its_batch_a_few_calls_and_only_itself():
    calls = []

    def function(batch):
        calls.append(batch)
        if 6 in batch:
            raise ValueError("six")
        return [value * 10 for value in batch]

    results = in_buckets(function, list(range(8)), lambda value: 0, 8, lambda rows: None)
    assert [result if isinstance(result, int) else str(result) for result in results] == [
        0, 10, 20, 30, 40, 50, "six", 70,
    ]  # fmt: skip
    assert len(calls) == 7


def test_a_device_that_is_of_no_use_any_more_stops_the_run():
    def function(batch):
        raise torch.AcceleratorError("device-side assert")

    with pytest.raises(torch.AcceleratorError):
        in_buckets(function, [1, 2], int, 2, lambda rows: None)


def test_a_prompt_that_is_too_long_is_an_error_of_its_row(tokenizer, model):
    rows = {"id": ["short", "long"], "text": ["The owl", "No. " * 300]}
    found = TextWriter(model, tokenizer, SETTINGS)(rows)
    assert found["error"][0] is None and "`max_position_embeddings`" in found["error"][1]


def kill_after_a_part(process, folder, moment: float) -> None:
    """Kills a process when it has written another part, and some seconds have gone by."""
    there, until = len(list(folder.glob("part-*"))), time.monotonic() + 60
    while process.is_alive() and len(list(folder.glob("part-*"))) <= there and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_corpus(saved, data, undisturbed, tmp_path):
    draw, folder, kills = random.Random(0), tmp_path / "corpus", 0
    for _ in range(4):
        process = in_process(write_corpus, job(saved, data, folder), SETTINGS)
        kill_after_a_part(process, folder, draw.uniform(0, 0.1))
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*")}
    write_corpus(job(saved, data, folder), SETTINGS)
    assert contents(folder) == contents(undisturbed)
    assert manifest_of(folder)["parts"] == manifest_of(undisturbed)["parts"]
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before, "finished parts are left alone"
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in undisturbed.iterdir())


def killed_at(count: int, before: bool, *arguments) -> None:
    """Writes a corpus, and is killed before or after a file gets its name, the so-manieth."""
    replace, done = os.replace, []

    def kill_or_replace(*paths):
        done.append(paths)
        if before and len(done) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
        if len(done) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = kill_or_replace
    write_corpus(*arguments)


@pytest.mark.parametrize("count, before", [(1, True), (1, False), (3, True), (3, False)])
def test_a_run_that_is_killed_as_it_names_a_file_loses_nothing(count, before, saved, data, undisturbed, tmp_path):
    folder = tmp_path / "corpus"
    process = in_process(killed_at, count, before, job(saved, data, folder), SETTINGS)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(file.name.endswith(".tmp") for file in folder.iterdir()) == before
    write_corpus(job(saved, data, folder), SETTINGS)
    assert contents(folder) == contents(undisturbed)
    left = {file.name for file in folder.iterdir()} - {file.name for file in undisturbed.iterdir()}
    assert all(name.startswith("._manifest") for name in left)


@pytest.mark.parametrize("count", [2, 3])
def test_shards_together_make_what_one_process_makes(count, saved, data, undisturbed, tmp_path):
    """With two of them each reads a file; three divide the parts of the two files."""
    folder = tmp_path / "corpus"
    processes = [
        in_process(write_corpus, job(saved, data, folder, shard=Shard(index, count)), SETTINGS)
        for index in range(count)
    ]
    for process in processes:
        process.join()
    assert contents(folder) == contents(undisturbed)
    assert manifest_of(folder) == {**manifest_of(undisturbed), "data": manifest_of(folder)["data"]}


def test_the_manifest_names_a_part_that_another_process_wrote_meanwhile(undisturbed, tmp_path, monkeypatch):
    copied = [shutil.copy(undisturbed / f"part-00000-0000{number}.parquet", tmp_path) for number in (0, 1)]
    write_json, moved = manifest.write_json, tmp_path / "elsewhere"
    os.rename(copied[1], moved)

    def write_as_a_part_comes(*given):
        if moved.exists():
            os.rename(moved, copied[1])
        write_json(*given)

    monkeypatch.setattr(manifest, "write_json", write_as_a_part_comes)
    monkeypatch.setattr(manifest, "check", lambda *given: None)
    assert manifest.update(Folder(tmp_path), {"files": [{}]}).rows == 8
    assert manifest_of(tmp_path)["rows"] == 8 and len(manifest_of(tmp_path)["parts"]) == 2


@pytest.mark.parametrize("files", [2, 5])
def test_every_part_has_one_owner(files):
    shards = [Shard(index, 3) for index in range(3)]
    for part in (Part(file, number) for file in range(files) for number in range(7)):
        owners = [shard for shard in shards if shard.owns(part, files)]
        assert len(owners) == 1 and owners[0].reads(part.file, files)


def test_a_shard_alone_says_that_parts_are_missing(saved, data, tmp_path):
    found = write_corpus(job(saved, data, tmp_path / "corpus", shard=Shard(0, 2)), SETTINGS)
    assert (found.rows, found.complete) == (17, False)
    assert not manifest_of(tmp_path / "corpus")["complete"]


def test_torchrun_says_which_shard_a_process_is():
    assert Shard.find(None, {}) == Shard(0, 1)
    assert Shard.find(None, {"RANK": "3", "WORLD_SIZE": "8"}) == Shard(3, 8)
    assert Shard.find("1/2", {"RANK": "3", "WORLD_SIZE": "8"}) == Shard(1, 2)
    for text in ("2/2", "2", "-1/2", "a/b"):
        with pytest.raises(ValueError, match="`shard` is"):
            Shard.find(text, {})


def test_latents_are_those_of_encode_sentences(saved, data, model, tokenizer, tmp_path):
    embed_corpus(job(saved, data, tmp_path / "latents"), EmbedSettings("float32"))
    rows = {row["id"]: row for row in rows_of(tmp_path / "latents")}
    assert rows["row 5"] == {"id": "row 5", "sentences": None, "latents": None, "error": "the text is empty."}
    text = prompt(6)
    assert text.count(".") > 1
    input_ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    expected, _ = model.encode_sentences(input_ids)
    row = rows["row 6"]
    assert "".join(row["sentences"]) == text and len(row["sentences"]) == len(row["latents"]) > 1
    assert np.allclose(row["latents"], expected[0].flatten(1).detach(), atol=1e-5)


def test_a_text_of_any_length_has_the_latents_that_it_has_whole(model, tokenizer, monkeypatch):
    from hf_sllm.corpus import latents

    rows = {"id": ["long", "short"], "text": [" ".join(map(prompt, range(30))), "No."]}
    embedder = SentenceEmbedder(model, tokenizer, EmbedSettings("float32"))
    whole = embedder(rows)
    monkeypatch.setattr(latents, "PIECE_TOKENS", 20)
    monkeypatch.setattr(latents, "CALL_TOKENS", 60)
    cut = embedder(rows)
    assert cut["sentences"] == whole["sentences"] and "".join(cut["sentences"][0]) == rows["text"][0]
    for some, others in zip(cut["latents"], whole["latents"], strict=True):
        assert np.allclose(some, others, atol=1e-5)


def test_a_sentence_vae_embeds_sentences_without_a_start_token():
    vae = AutoModel.from_pretrained(embedded_checkpoint("sentence-vae"))
    own = AutoTokenizer.from_pretrained(embedded_checkpoint("sentence-vae"))
    found = SentenceEmbedder(vae, own, EmbedSettings("float32"))({"id": ["a"], "text": ["The owl said no. Two ran."]})
    assert found["sentences"] == [["The owl said no.", " Two ran."]]
    expected = vae.eval().encode(own(["The owl said no. Two ran."], return_tensors="pt")["input_ids"])
    assert np.allclose(np.stack(found["latents"][0]), expected.flatten(1).detach(), atol=1e-5)


def test_a_start_token_that_closes_a_sentence_is_no_sentence_of_the_text(model, tokenizer):
    embedder = SentenceEmbedder(model, tokenizer, EmbedSettings())
    embedder.start = [tokenizer.eos_token_id]
    found = embedder({"id": ["a"], "text": ["No."]})
    assert found["sentences"] == [["No."]] and len(found["latents"][0]) == 1


def test_latents_that_float16_cannot_hold_are_an_error_of_their_row(model, tokenizer, monkeypatch):
    encode_all = model.model.encode_all
    monkeypatch.setattr(model.model, "encode_all", lambda *given: (lambda a, b: (a, b * 1e9))(*encode_all(*given)))
    (error,) = SentenceEmbedder(model, tokenizer, EmbedSettings("float16"))({"id": ["a"], "text": ["No."]})["error"]
    assert "float32" in error


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"part_rows": 5}, "`part_rows` is 5, and .* was made with 4"),
        ({"id_column": "name"}, "`id_column` is 'name'"),
        ({"settings": WriteSettings(max_sentences=3, max_new_tokens=12, seed=1)}, "`seed` is 1, .* with 0"),
        ({"data": "a.jsonl.gz"}, "`data` are other files"),
        ({"dtype": "bfloat16"}, "`dtype` is 'bfloat16'"),
        ({"model": "other"}, "`model` is another one"),
        ({"embed": True}, "`task` is 'embed'"),
    ],
)
def test_other_settings_are_refused_with_the_remedy(
    changes, message, saved, data, model, tokenizer, undisturbed, tmp_path
):
    settings, embed = changes.pop("settings", SETTINGS), changes.pop("embed", False)
    if "data" in changes:
        changes["data"] = [str(data / changes["data"])]
    if "model" in changes:
        changes["model"] = str(tmp_path)
        SllmForCausalLM(model.config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    before = contents(undisturbed), manifest_of(undisturbed)
    with pytest.raises(ValueError, match=f"(?s){message}.*another `output`"):
        other_job = job(saved, data, undisturbed, **changes)
        embed_corpus(other_job, EmbedSettings()) if embed else write_corpus(other_job, settings)
    assert (contents(undisturbed), manifest_of(undisturbed)) == before


def test_another_batch_size_or_path_to_the_same_is_no_other_corpus(saved, data, undisturbed, monkeypatch):
    monkeypatch.chdir(data)
    same = job(os.path.relpath(saved), data, undisturbed, batch_size=3, data=["a.jsonl.gz", "b.parquet"])
    assert write_corpus(same, SETTINGS).complete


def test_parts_without_a_manifest_are_refused(saved, data, undisturbed, tmp_path):
    (tmp_path / "part-00000-00000.parquet").write_bytes((undisturbed / "part-00000-00000.parquet").read_bytes())
    with pytest.raises(ValueError, match="has parts and no _manifest.json"):
        write_corpus(job(saved, data, tmp_path), SETTINGS)


def test_files_without_rows_and_lines_of_text_are_read_too(saved, tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.txt").write_text("The owl\n\nTwo mice\n")
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.txt")]
    corpus = job(saved, tmp_path, tmp_path / "corpus", data=names)
    assert write_corpus(corpus, SETTINGS).complete
    rows = rows_of(tmp_path / "corpus")
    assert [row["id"] for row in rows] == ["b.txt:0", "b.txt:1", "b.txt:2"]
    assert [row["error"] is None for row in rows] == [True, False, True]
    # What is complete is not read again.
    (tmp_path / "b.txt").chmod(0)
    assert write_corpus(corpus, SETTINGS).complete


@pytest.mark.parametrize("source", ["folder", "folder/*.jsonl"])
def test_the_rows_of_a_folder_or_a_pattern_are_those_of_load_documents(source, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file in range(3):
        lines = [json.dumps({"text": prompt(5 * file + number)}) + "\n" for number in range(5)]
        (tmp_path / "folder" / f"{file}.jsonl").write_text("".join(lines))
    files = find_source_files([source], "train")
    tables = [list(read_tables(file, 2, "text", ["id"])) for file in files]
    assert [[len(table) for table in own] for own in tables] == [[2, 2, 1]] * 3
    texts = [text for own in tables for table in own for text in table.column("text").to_pylist()]
    assert texts == load_documents(source)["text"]
    assert [file.name for file in find_source_files([str(tmp_path / source)], "train")] == [
        file.name for file in files
    ]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("broken.jsonl.gz", gzip.compress(b'{"text": "No."}\n' * 50, mtime=0)[:-12], "broken.jsonl.gz cannot be read"),
        ("no.jsonl", b'{"text": "No."}\n{"text": \n', "no.jsonl cannot be read"),
        ("list.json", rb'["The owl \ud800"]', "list.json has a lone surrogate"),
        ("numbers.jsonl", b'{"text": 3}\n', "column 'text' of numbers.jsonl holds int64, not text"),
        ("other.jsonl", b'{"body": "No."}\n', "other.jsonl has no column 'text', only body"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        for file in find_source_files([str(tmp_path / name)], "train"):
            list(read_tables(file, 10, "text", ["id"]))


def test_a_file_that_is_named_twice_is_refused(data):
    with pytest.raises(ValueError, match="names a.jsonl.gz twice"):
        find_source_files([str(data / "a.jsonl.gz"), str(data / "*.gz")], "train")


def test_the_corpus_can_be_loaded_as_documents(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = load_documents(str(undisturbed / "part-00000-00000.parquet"), text_column="written")
    assert loaded["text"] == [row["written"] for row in rows_of(undisturbed)[:4]]
    assert len(datasets.load_dataset(str(undisturbed), split="train")) == 31


def test_the_commands_write_and_embed_and_say_what_is_wrong(saved, data, undisturbed, tmp_path):
    def run(command: str, *arguments: object):
        common = [command, saved, "--data", data / "a.jsonl.gz", "--data", data / "b.parquet"]
        return CliRunner().invoke(app, [*map(str, common), *map(str, arguments)])

    options = ("--max-sentences", 3, "--max-new-tokens", 12, "--part-rows", 4)
    result = run("write", "--output", tmp_path / "texts", *options)
    assert result.exit_code == 0, result.output
    assert "31 rows in 9 parts, 2 of them with an error" in " ".join(result.stderr.split())
    assert contents(tmp_path / "texts") == contents(undisturbed)
    result = run("write", "--output", tmp_path / "texts", *options, "--seed", 1)
    assert result.exit_code == 1 and "`seed` is 1" in result.stderr
    result = run("embed", "--output", tmp_path / "latents")
    assert result.exit_code == 0 and manifest_of(tmp_path / "latents")["rows"] == 31
    for arguments in (["--shard", "3/2"], ["--text-column", "none"], ["--dtype", "float99"], ["--id-column", "none"]):
        result = run("embed", "--output", tmp_path / arguments[0], *arguments)
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output


def test_after_ctrl_c_the_command_says_how_to_go_on(saved, data, tmp_path, monkeypatch):
    from hf_sllm.corpus import run

    rows_of_part, parts = run.rows_of, []

    def interrupted(*given):
        parts.append(given)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return rows_of_part(*given)

    monkeypatch.setattr(run, "rows_of", interrupted)
    arguments = [str(saved), "--data", str(data / "*.jsonl.gz"), "--output", str(tmp_path), "--part-rows", "4"]
    result = CliRunner().invoke(app, ["write", *arguments, "--max-sentences", "1"])
    assert result.exit_code == 130 and "the same command goes on" in " ".join(result.stderr.split())
    assert manifest_of(tmp_path)["rows"] == 8


@pytest.mark.slow
def test_ten_thousand_rows_killed_five_times(tokenizer, tmp_path):
    """The last run is the command's, in another interpreter."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(tokenizer), "bos_token_id": 0}
    backbone = tiny_backbone(**sizes, eos_token_id=1, pad_token_id=2)
    made = SllmForCausalLM.from_backbone(backbone, tokenizer, encoder_layers=1, decoder_layers=1)
    made.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": prompt(number)}) + "\n" for number in range(10_000))
    names = [str(tmp_path / "rows.jsonl.gz")]
    changes = {"data": names, "part_rows": 500, "batch_size": 250}
    settings = WriteSettings(max_sentences=1, max_new_tokens=4)
    write_corpus(job(tmp_path / "model", tmp_path, tmp_path / "undisturbed", **changes), settings)

    draw, folder, codes = random.Random(0), tmp_path / "corpus", []
    for _ in range(5):
        process = in_process(write_corpus, job(tmp_path / "model", tmp_path, folder, **changes), settings)
        kill_after_a_part(process, folder, draw.uniform(0, 0.4))
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * 5
    options = ["--max-sentences", "1", "--max-new-tokens", "4", "--part-rows", "500", "--batch-size", "250"]
    command = ["write", str(tmp_path / "model"), "--data", *names, "--output", str(folder), *options]
    subprocess.run([sys.executable, "-m", "hf_sllm.cli", *command], check=True, stderr=subprocess.DEVNULL)
    assert manifest_of(folder)["complete"] and manifest_of(folder)["rows"] == 10_000
    assert [row["id"] for row in rows_of(folder)] == [f"rows.jsonl.gz:{number}" for number in range(10_000)]
    assert contents(folder) == contents(tmp_path / "undisturbed")

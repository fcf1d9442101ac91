"""lm-evaluation-harness finds of an SLLM, loaded by its name as an `hf` model, what the model itself says."""

import json
import math
import socket
import sys
from importlib.resources import files

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.data import load_documents
from hf_sllm.evaluation import bits_per_byte

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, manager

from hf_sllm.harness import TASKS
from hf_sllm.harness.documents import cloze_questions

FOLDER = str(files("hf_sllm") / "checkpoints" / "sllm-stories")
PAIRS = [
    ("Once upon a time, there was a little girl named Lily.", " She loved to play outside."),
    ("One day, Tim went to the park. He saw a", " big dog. Tim was scared."),
    ("The end", "."),
    ("", "Once upon a time, there was a boy."),
]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def stories(shared) -> list[str]:
    return load_documents(shared / "data" / "stories.valid.jsonl.gz", limit=8)["text"][:]


@pytest.fixture
def only_our_tasks(monkeypatch, tmp_path):
    """The harness reads thousands of task files beside its own module before it runs any: here it finds none."""
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "none" / "manager.py"))
    # Its log handler would outlive the stream that the command's output is caught in.
    monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", True)


def harness(**settings) -> HFLM:
    """What `--model hf --model_args pretrained=…` makes."""
    return HFLM(pretrained=FOLDER, device="cpu", dtype="float32", **settings)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


@torch.no_grad()
def log_likelihood(model, ids: list[int], scored: int) -> tuple[float, bool]:
    """Of the last `scored` tokens, and whether each is the likeliest."""
    log_probabilities = model(torch.tensor([ids])).logits[0, -scored - 1 : -1].log_softmax(-1)
    target = torch.tensor(ids[-scored:])
    greedy = bool((log_probabilities.argmax(-1) == target).all())
    return log_probabilities.gather(1, target[:, None]).double().sum().item(), greedy


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_likelihoods_are_the_models_own(model, tokenizer, start, batch_size):
    """With `add_bos_token` a context begins with the start token; without one, only an empty context does."""
    found = harness(batch_size=batch_size, add_bos_token=start or None).loglikelihood(requests("loglikelihood", PAIRS))
    for (context, continuation), (nats, greedy) in zip(PAIRS, found, strict=True):
        before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, continuation))
        prefix = [tokenizer.bos_token_id] if start or not context else []
        expected, expected_greedy = log_likelihood(model, [*prefix, *before, *after], len(after))
        assert nats == pytest.approx(expected, abs=1e-3)
        assert greedy == expected_greedy


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rolling_log_likelihoods_and_the_end_of_text_make_our_bits_per_byte(model, tokenizer, stories, batch_size):
    """Ours scores the end of text, the harness scores what is in the text: with the token written out they are equal,
    and without it the difference is what the end of text costs."""
    lm = harness(batch_size=batch_size)
    ours = bits_per_byte(model, tokenizer, [{"text": text} for text in stories], progress=False)
    with_end = lm.loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text + tokenizer.eos_token,) for text in stories])
    )
    without = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in stories]))
    rows = [
        [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for text in stories
    ]
    ends = sum(log_likelihood(model, row, 1)[0] for row in rows)
    to_bits_per_byte = -1 / math.log(2) / ours.bytes
    assert sum(with_end) * to_bits_per_byte == pytest.approx(ours.bits_per_byte, abs=1e-5)
    assert (sum(without) + ends) * to_bits_per_byte == pytest.approx(ours.bits_per_byte, abs=1e-5)
    assert -ends > 1.0


def test_the_windows_of_a_longer_text_are_ours_and_with_a_raised_max_length_it_is_read_whole(
    model, tokenizer, stories
):
    """The harness takes the backbone's positions for a number of tokens, and they are one of sentences."""
    text = "\n".join(stories * 2)
    request = requests("loglikelihood_rolling", [(text + tokenizer.eos_token,)])
    tokens = len(tokenizer(text)["input_ids"]) + 1
    positions = model.config.text_config.max_position_embeddings
    assert tokens > harness().max_length == positions
    found = []
    for max_length, window in ((None, positions), (tokens, tokens)):
        nats = -harness(max_length=max_length).loglikelihood_rolling(request)[0]
        ours = bits_per_byte(model, tokenizer, [{"text": text}], progress=False, window=window, stride=window)
        assert nats / math.log(2) / ours.bytes == pytest.approx(ours.bits_per_byte, abs=1e-5)
        found.append(nats)
    assert abs(found[0] - found[1]) > 1.0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generation_is_the_models_own_greedy_one(model, tokenizer, batch_size):
    prompts = ["Once upon a time", "One day, Tim and his dog went to the", "Lily was sad."]
    kwargs = {"until": ["\n"], "max_gen_toks": 40, "do_sample": False}
    found = harness(batch_size=batch_size, add_bos_token=True).generate_until(
        requests("generate_until", [(prompt, kwargs) for prompt in prompts])
    )
    for prompt, text in zip(prompts, found, strict=True):
        inputs = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert text == tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]


def test_cloze_questions_join_to_the_story_and_ask_the_same_each_time(stories):
    questions = cloze_questions(stories)
    assert questions == cloze_questions(stories)
    assert len(stories) * 3 < len(questions) <= len(stories) * 11
    asked = [question["context"] + question["choices"][question["label"]] for question in questions]
    assert len(set(asked)) == len(asked)  # places that are the same are asked for once
    for text, question in zip(asked, questions, strict=True):
        story = next(story for story in stories if story.startswith(text))
        assert len(set(question["choices"])) == 4
        assert not any(
            story.startswith(question["context"] + choice)
            for index, choice in enumerate(question["choices"])
            if index != question["label"]
        )
    assert [question["label"] for question in questions[:5]] == [0, 1, 2, 3, 0]


def test_too_few_stories_for_a_cloze_are_refused():
    with pytest.raises(ValueError, match="needs 4 to choose from"):
        cloze_questions(["It was. It is."] * 9 + ["No gap"])


def test_the_command_runs_our_tasks_on_local_files_without_the_network(
    only_our_tasks, model, tokenizer, stories, shared, tmp_path, monkeypatch
):
    def no_network(*arguments):
        raise AssertionError(f"reached for {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    data = shared / "data"
    result = run_command(
        *("--model", "hf", "--model_args", f"pretrained={FOLDER},dtype=float32", "--device", "cpu"),
        *("--tasks", "sllm_cloze,sllm_bits_per_byte,sllm_gsm8k", "--limit", 3, "--num_fewshot", 0),
        *("--gen_kwargs", "max_gen_toks=8", "--output_path", tmp_path, "--log_samples", "--metadata"),
        f"documents={data / 'stories.valid.jsonl.gz'}",
        *(f"gsm8k_{split}={data / f'gsm8k.{split}.jsonl.gz'}" for split in ("train", "test")),
    )
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.rglob("results_*.json")
    found = json.loads(file.read_text())["results"]
    rows = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in stories[:3]]
    nats = -sum(log_likelihood(model, row, len(row) - 1)[0] for row in rows)
    expected = nats / math.log(2) / sum(len(text.encode()) for text in stories[:3])
    assert found["sllm_bits_per_byte"]["bits_per_byte,none"] == pytest.approx(expected, abs=1e-3)
    assert found["sllm_cloze"]["acc,none"] in (0, 1 / 3, 2 / 3, 1)
    assert "exact_match,last-number" in found["sllm_gsm8k"]
    asked = next(iter(tmp_path.rglob("samples_sllm_cloze_*.jsonl"))).read_text().splitlines()
    (_, context), (_, choice) = sorted(json.loads(asked[0])["arguments"]["gen_args_0"].items())
    assert stories[0].startswith(context + choice)


@pytest.mark.parametrize(
    "task, metadata, message",
    [
        ("sllm_cloze", {}, "--metadata documents=FILE"),
        ("sllm_bits_per_byte", {"documents": "none.jsonl.gz"}, "there is no file none.jsonl.gz"),
        ("sllm_gsm8k", {"gsm8k_train": "none.jsonl"}, "was not told `gsm8k_test`"),
        ("sllm_gsm8k", {"gsm8k_train": "{data}", "gsm8k_test": "{data}"}, "no column 'question'"),
    ],
)
def test_a_file_that_a_task_lacks_is_named(task, metadata, message, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "The owl said no."}\n')
    names = {key: name.format(data=tmp_path / "data.jsonl") for key, name in metadata.items()}
    with pytest.raises(ValueError, match=message):
        load_task(task, **names)


def test_the_command_says_without_a_traceback_what_is_wrong(only_our_tasks):
    result = run_command("--model", "hf", "--model_args", f"pretrained={FOLDER}", "--tasks", "none", "--device", "cpu")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "Tasks not found: none" in result.stderr


def test_tasks_of_the_users_own_folder_take_the_place_of_ours(only_our_tasks, tmp_path):
    listed = run_command("ls", "subtasks")
    assert "sllm_cloze" in listed.stdout
    (tmp_path / "mine.yaml").write_text("task: mine\n")
    listed = run_command("ls", "subtasks", "--include_path", tmp_path)
    assert "mine" in listed.stdout and "sllm_cloze" not in listed.stdout


def test_without_the_harness_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    result = run_command("ls", "tasks")
    assert result.exit_code == 1
    assert 'pip install "hf-sllm[harness]"' in result.stderr


@pytest.mark.parametrize(
    "written, number, right",
    [
        ("It is 3 + 4 = 7.\n#### 7", "7", True),
        ("Mia earns $1,072.00.", "1072", True),
        ("She has 18 left. #### -3", "-3", True),
        ("#### 7 of 9", "7", False),
        ("I do not know.", "7", False),
    ],
)
def test_the_last_number_written_is_the_answer(written, number, right, shared):
    names = {f"gsm8k_{split}": str(shared / "data" / f"gsm8k.{split}.jsonl.gz") for split in ("train", "test")}
    task = load_task("sllm_gsm8k", **names)
    doc = {"question": "", "answer": f"So it is.\n#### {number}"}
    instance = Instance(request_type="generate_until", doc=doc, arguments=("", {}), idx=0)
    instance.resps = [written]
    for ensemble in task._filters:
        ensemble.apply([instance])
    (answer,) = instance.filtered_resps.values()
    assert task.process_results(doc, [answer])["exact_match"] == right


def load_task(name: str, **metadata: str):
    tasks = TaskManager(include_path=TASKS, include_defaults=False, metadata=metadata)
    return tasks.load(name)["tasks"][name]


def run_command(*arguments: object):
    return CliRunner().invoke(app, ["lm-eval", *(str(argument) for argument in arguments)])

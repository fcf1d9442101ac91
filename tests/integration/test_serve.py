"""`hf-sllm serve` as its users meet it: by the `openai` package, on the loopback address."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, set_seed
from transformers.generation.streamers import BaseStreamer
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.serving.manager import ServedSllm
from hf_sllm.serving.measure_load import measure_load
from hf_sllm.serving.run import PLAIN_CHAT_TEMPLATE, serve

openai = pytest.importorskip("openai")

CHECKPOINT = str(files("hf_sllm") / "checkpoints" / "sllm-stories")
MODEL = "sllm-stories"
PROMPT = "Once upon a time"
PROMPTS = [PROMPT, "The owl was sad.", "Tom and Lily saw a big dog. The", "One day"]


@contextmanager
def running(command: list[str], folder: Path, **environment: str) -> Iterator[openai.OpenAI]:
    """A client of a server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    with log.open("w") as output:
        command = [sys.executable, *command, "--port", str(port)]
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        for _ in range(1200):
            assert server.poll() is None, log.read_text()
            try:
                urlopen(f"http://127.0.0.1:{port}/health")
                break
            except URLError:
                time.sleep(0.1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, max_retries=0)
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a server in a process of its own; one answer from it is one request, for nothing is tried again. At
    most four texts are written at a time."""
    command = ["-c", "from hf_sllm.cli import app; app()", "serve", "--batch-size", "4"]
    with running(command, tmp_path_factory.mktemp("serve")) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def greedy(tokenizer):
    """What the model itself writes after the start token and a prompt."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT)

    def write(prompt: str, tokens: int) -> str:
        ids = tokenizer("<s>" + prompt, return_tensors="pt")["input_ids"]
        written = model.generate(ids, max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)

    return write


def complete(client, prompt: str = PROMPT, **changes) -> str:
    """The text of a completion, streamed or not."""
    found = client.completions.create(
        **{"model": MODEL, "prompt": prompt, "max_tokens": 30, "temperature": 0, **changes}
    )
    return "".join(chunk.choices[0].text for chunk in found) if changes.get("stream") else found.choices[0].text


def chat(client, *turns: str, **changes):
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return client.chat.completions.create(
        **{"model": MODEL, "messages": messages, "max_tokens": 30, "temperature": 0, **changes}
    )


def test_the_served_model_is_listed_by_the_name_to_call_it_by(client):
    assert [model.id for model in client.models.list()] == [MODEL]


@pytest.mark.parametrize("prompt", ["The owl was sad.", ""])
@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_at_temperature_0_is_the_models_greedy_text(client, greedy, prompt, stream):
    assert complete(client, prompt, stream=stream) == greedy(prompt, 30)


def test_a_chat_without_a_template_goes_on_with_its_turns(client, greedy):
    turns = (PROMPT, "there was an owl.", "The owl")
    expected = greedy("\n".join(turns), 30)
    assert chat(client, *turns).choices[0].message.content == expected
    chunks = chat(client, *turns, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_responses_are_the_same_text(client, greedy):
    asked = {"model": MODEL, "input": PROMPT, "max_output_tokens": 30, "temperature": 0}
    assert client.responses.create(**asked, stream=False).output_text == greedy(PROMPT, 30)
    events = client.responses.create(**asked, stream=True)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == greedy(PROMPT, 30)


def test_max_tokens_counts_exactly_and_is_the_reason(client):
    found = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=7, temperature=0)
    assert found.usage.completion_tokens == 7 and found.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_it_stops_at_the_first_of_the_given_strings(client, greedy, stream):
    text = greedy(PROMPT, 30)
    stop = text.split()[4]
    assert complete(client, stop=["no such", stop], stream=stream) == text[: text.index(stop) + len(stop)]
    assert chat(client, PROMPT, stop=stop).choices[0].finish_reason == "stop"


def test_a_temperature_samples_and_a_seed_repeats(client):
    texts = [complete(client, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"use_cache": False}])
def test_what_the_sentence_loop_does_not_serve_goes_token_by_token(client, settings):
    config = json.dumps({**settings, "do_sample": False, "eos_token_id": 1, "pad_token_id": 2})
    text = complete(client, max_tokens=5, extra_body={"generation_config": config})
    assert text == complete(client, max_tokens=5)  # stories begin alike


def test_requests_at_once_get_each_their_own_answer(client, greedy):
    with ThreadPoolExecutor(12) as pool:
        texts = [pool.submit(complete, client, p, stream=index % 2 == 0) for index, p in enumerate(PROMPTS * 3)]
    expected = [greedy(prompt, 30) for prompt in PROMPTS]
    assert [text.result() for text in texts] == expected * 3 and len(set(expected)) == 4


@pytest.mark.slow
def test_clients_at_once_get_three_times_the_tokens_per_second():
    """The bar is lower than the figure of docs/serving.md; with a batch of one there is nothing to gain."""
    found, one_by_one = measure_load(CHECKPOINT), measure_load(CHECKPOINT, clients=8, batch_size=1)
    assert found.speedup > 3 and found.lost == found.other_answers == 0
    assert one_by_one.speedup < 1.7


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(client, greedy, stream):
    """All four places are taken by texts that would be written for minutes. Without end of text, they have none."""
    endless = {"logit_bias": {"1": -100.0}, "max_tokens": 20_000, "stream": stream}
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": MODEL, "messages": messages, "n": 4, **endless}
    address = (client.base_url.host, client.base_url.port)
    connection = http.client.HTTPConnection(*address)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    with pytest.raises(openai.APITimeoutError):  # the control: while it stays, nobody else gets a place
        complete(client.with_options(timeout=1.5))
    connection.close()
    assert complete(client.with_options(timeout=20)) == greedy(PROMPT, 30)


@pytest.mark.parametrize("stream", [False, True])
def test_a_list_of_prompts_has_n_texts_for_each_in_order(client, greedy, tokenizer, stream):
    prompts = [PROMPTS[1], PROMPTS[3], PROMPTS[2]]
    found = client.completions.create(model=MODEL, prompt=prompts, n=2, max_tokens=20, temperature=0, stream=stream)
    texts = [""] * 6
    for choice in [c for chunk in found for c in chunk.choices] if stream else found.choices:
        texts[choice.index] += choice.text
    assert texts == [greedy(prompt, 20) for prompt in prompts for _ in range(2)]
    if not stream:
        read = sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
        assert found.usage.completion_tokens == 120 and found.usage.prompt_tokens == read


def test_token_ids_are_a_prompt_too(client, tokenizer):
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    asked = {"model": MODEL, "max_tokens": 10, "temperature": 0}
    as_ids, as_texts = (client.completions.create(prompt=prompt, **asked).choices for prompt in (ids, PROMPTS))
    assert [choice.text for choice in as_ids] == [choice.text for choice in as_texts]


def test_the_choices_of_a_seed_differ_and_repeat(client):
    texts = [
        [choice.message.content for choice in chat(client, PROMPT, n=3, temperature=1.5, seed=7).choices]
        for _ in range(2)
    ]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3


def test_logprobs_are_the_models_own(client, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    choice = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, logprobs=2).choices[0]
    prompt = tokenizer("<s>" + PROMPT, return_tensors="pt")["input_ids"]
    ids = model.generate(prompt, max_new_tokens=12, do_sample=False)
    expected = model(ids).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
    own = expected.gather(1, ids[0, prompt.shape[1] :, None]).squeeze(1).tolist()
    assert choice.logprobs.token_logprobs == pytest.approx(own, abs=1e-4)
    assert [max(likeliest.values()) for likeliest in choice.logprobs.top_logprobs] == pytest.approx(own, abs=1e-4)
    assert "".join(choice.logprobs.tokens) == choice.text
    assert [choice.text[offset] for offset in choice.logprobs.text_offset] == [t[0] for t in choice.logprobs.tokens]
    content = chat(client, PROMPT, max_tokens=12, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert [entry.logprob for entry in content] == pytest.approx(own, abs=1e-4)
    assert all(entry.top_logprobs[0].token == entry.token for entry in content)


def test_an_embedding_is_the_mean_of_the_latents_of_a_texts_sentences(client, tokenizer):
    model, text = AutoModelForCausalLM.from_pretrained(CHECKPOINT), "The owl was sad. It sat on a tree."
    latents, _ = model.encode_sentences(tokenizer("<s>" + text, return_tensors="pt")["input_ids"])
    expected = latents[0].flatten(1).mean(0).tolist()
    for options in ({}, {"encoding_format": "float"}):  # the package's own default is base64
        found = client.embeddings.create(model=MODEL, input=["One day", text], **options)
        assert found.data[1].embedding == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n": 0}, "`n` is 0"),
        ({"prompt": []}, "`prompt`"),
        ({"prompt": [99_999]}, "99999"),
        ({"logprobs": 9}, "`logprobs` is 9"),
        ({"logprobs": 1, "stream": True}, "`logprobs` came with `stream`"),
        ({"max_tokens": -1}, "max_new_tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_name(client, changes, told):
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, **changes)
    assert told in str(raised.value.body)


def test_an_unknown_model_is_an_error_that_names_it(client):
    for ask in (complete, chat):
        with pytest.raises(openai.BadRequestError) as raised:
            ask(client, PROMPT, model="no-such-model")
        assert "'sllm-stories'" in str(raised.value.body) and "'no-such-model'" in str(raised.value.body)


@pytest.mark.slow
def test_the_file_of_the_docs_serves_a_folder_by_its_own_code(tmp_path, greedy, tokenizer):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (tmp_path / "serve_folder.py").write_text(
        page.split("Save this as `serve_folder.py`:\n\n```python\n")[1].split("```")[0]
    )
    AutoModelForCausalLM.from_pretrained(CHECKPOINT).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model, command = str(tmp_path / "model"), [str(tmp_path / "serve_folder.py"), str(tmp_path / "model")]
    with running(command, tmp_path, HF_HOME=str(tmp_path)) as client:
        assert complete(client, "<s>" + PROMPT, model=model) == greedy(PROMPT, 30)


def test_a_model_that_is_not_there_is_told_plainly():
    found = CliRunner().invoke(app, ["serve", "no/such-model"])
    assert found.exit_code == 1 and "no/such-model" in found.stderr


def test_a_folder_whose_name_the_server_would_cut_is_refused(tmp_path):
    (tmp_path / "model@2").mkdir()
    with pytest.raises(ValueError, match="model@2.*Rename"):
        serve(str(tmp_path / "model@2"))


class Pieces(BaseStreamer):
    def __init__(self):
        self.lengths = []

    def put(self, value):
        self.lengths.append(value.numel())

    def end(self):
        pass


@pytest.fixture(scope="module")
def served(tokenizer):
    """Calls the model as the server does."""
    model = ServedSllm.from_pretrained(CHECKPOINT)

    def write(text: str, streamer: BaseStreamer | None = None, **settings) -> list[int]:
        inputs = tokenizer(text, return_tensors="pt")
        config = GenerationConfig(eos_token_id=1, pad_token_id=2, do_sample=False, **settings)
        return model.generate(**inputs, generation_config=config, tokenizer=tokenizer, streamer=streamer)[0].tolist()

    write.model = model
    return write


def test_the_start_token_is_given_once_and_not_returned(served):
    text = "The owl was sad."  # without the start token it goes on otherwise
    assert served("<s>" + text, max_new_tokens=12)[1:] == served(text, max_new_tokens=12)


def test_sentences_are_streamed_whole(served):
    pieces = Pieces()
    served(PROMPT + ", there was an owl. It was sad.", pieces, max_new_tokens=30)
    prompt, *sentences = pieces.lengths
    assert sum(sentences) == 30 and 1 < len(sentences) <= 8


def test_a_temperature_makes_a_greedy_model_sample(served, monkeypatch):
    monkeypatch.setattr(served.model, "generation_config", GenerationConfig())
    texts = []
    for seed in (1, 2):
        set_seed(seed)
        texts.append(served(PROMPT, temperature=1.5, max_new_tokens=20))
    assert texts[0] != texts[1]
    assert served(PROMPT, temperature=0.0, max_new_tokens=20) == served(PROMPT, max_new_tokens=20)


def test_the_plain_chat_template_begins_with_the_start_token_only(tokenizer):
    turns = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]
    render = lambda: tokenizer.apply_chat_template(turns, chat_template=PLAIN_CHAT_TEMPLATE, tokenize=False)  # noqa: E731
    assert render() == "<s>One.\nTwo."

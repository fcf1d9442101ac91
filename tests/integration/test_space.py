"""The Space as its users meet it: by `gradio_client` as an API, and in a browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

gradio = pytest.importorskip("gradio")
from gradio_client import Client  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

SPACE = Path(__file__).resolve().parents[2] / "spaces_app"
PROMPT = "Once upon a time"
TEXT = "Tom had a red ball. He loved it. One day the ball was gone."

# Temperature, top-p, sentences, seed.
OPTIONS = (0.7, 1.0, 3, 1)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The address of a Space in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("space") / "log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLLM_")},
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GRADIO_SERVER_PORT": str(port),
    }
    with log.open("w") as output:
        server = subprocess.Popen([sys.executable, SPACE / "app.py"], env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert server.poll() is None, log.read_text()
            try:
                urlopen(address)
                break
            except URLError:
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def client(space):
    return Client(space, verbose=False)


def test_the_front_matter_names_the_installed_gradio():
    front_matter = (SPACE / "README.md").read_text().split("---")[1]
    assert re.search(r"^sdk_version: (.*)$", front_matter, re.MULTILINE)[1] == gradio.__version__
    assert f"gradio=={gradio.__version__}" in (SPACE / "requirements.txt").read_text().splitlines()


def test_a_text_grows_sentence_by_sentence_and_token_by_token(client):
    pictures = list(client.submit(PROMPT, *OPTIONS, api_name="/write"))
    for column in (0, 1):
        texts = [picture[column] for picture in pictures]
        assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
    assert len({picture[0] for picture in pictures}) == 3
    assert pictures[-1][0].startswith(PROMPT) and "tokens / s" in pictures[-1][2]


def test_one_model_writes_one_text_in_both_ways(client):
    """With the same random numbers, so what is compared are the ways of writing."""
    sentences, tokens, _ = client.predict(PROMPT, *OPTIONS, api_name="/write")
    assert sentences == tokens


def test_requests_at_once_get_each_what_they_get_alone(client):
    """Each its own prompt, and its own random numbers, whoever else draws at the time."""
    animals = ["dog", "cat", "bird", "frog", "bear", "fox", "cow", "pig", "hen", "duck"]
    prompts = [f"The {animal} saw a" for animal in animals] * 2

    def write(index: int) -> str:
        return client.predict(prompts[index], 0.9, 1.0, 2, index, api_name="/write")[0]

    with ThreadPoolExecutor(len(prompts)) as pool:
        texts = list(pool.map(write, range(len(prompts))))
    assert all(text.startswith(prompt) and text != prompt for text, prompt in zip(texts, prompts, strict=True))
    assert len(set(texts)) == len(texts)
    assert [write(index) for index in (0, 7, 19)] == [texts[index] for index in (0, 7, 19)]


@pytest.mark.parametrize(
    "text, message",
    [("", "There is no text"), (" \n", "There is no text"), ("word " * 200_000, "1,000,000 characters: give at most")],
    ids=["empty", "blank", "1 MB"],
)
@pytest.mark.parametrize("page", ["write", "look_inside"])
def test_what_cannot_be_read_is_told(client, page, text, message):
    arguments = (text, *OPTIONS) if page == "write" else (text, "")
    with pytest.raises(AppError, match=message):
        client.predict(*arguments, api_name=f"/{page}")


def test_more_tokens_than_the_model_reads_are_told(client):
    with pytest.raises(AppError, match="tokens, the model reads at most"):
        client.predict("qxz " * 1500, *OPTIONS, api_name="/write")


def test_strange_text_comes_back_as_it_is(client):
    text = "<b>\u202e🦉\0</b> ${1+1} {{value}} Ünïcödé"
    assert client.predict(text, *OPTIONS, api_name="/write")[0].startswith(text)


def test_inside_all_of_the_text_is_shown_and_each_sentence_once(client):
    picture, marked, summary = client.predict(TEXT, "Tom had", api_name="/look_inside")
    shown = re.sub(r"<sup>\d+</sup>|<span class=\"bar\".*?</span>|<[^>]*>", "", marked)
    assert shown == TEXT
    assert picture.count("<circle") == marked.count('class="sentence"') == 3 and "Sentences: 3" in summary
    assert picture.count('class="given"') == 1


def test_a_text_is_no_html(client):
    picture, marked, _ = client.predict("<img src=x> ${1} {{value}}", "", api_name="/look_inside")
    assert not re.search(r"<img|\$\{|\{\{", picture + marked)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium), which is absent")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_default_timeout(120_000)  # other work may have the machine
    yield page
    page.close()


def test_a_text_is_stopped_edited_and_gone_on_with(space, page):
    page.goto(space)
    page.get_by_text("Options").click()
    page.locator("#sentences input[type=number]").fill("30")
    page.get_by_role("button", name="Write", exact=True).click()
    page.wait_for_function("document.querySelector('#written textarea').value.includes('.')")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1000)
    written = page.locator("#written textarea")
    text = written.input_value()
    page.wait_for_timeout(1000)
    assert written.input_value() == text
    edited = "Tom had a cat. The cat was"
    written.fill(edited)
    page.get_by_role("button", name="Go on from the edited text").click()
    page.wait_for_function(f"document.querySelector('#beside textarea').value.startsWith('{edited} ')")
    assert written.input_value().startswith(edited)


@pytest.mark.parametrize(
    "looks, width", [("light", 1200), ("dark", 1200), ("light", 390)], ids=["light", "dark", "phone"]
)
def test_a_browser_shows_sentences_and_asks_nobody_else(space, page, tmp_path, looks, width):
    page.set_viewport_size({"width": width, "height": 900})
    addresses, errors = [], []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{space}/?__theme={looks}")
    # By keyboard: the prompt, then on to the button behind it.
    page.get_by_label("How the story begins").fill("The owl saw")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#written textarea').value.includes('.')")
    assert page.locator("#written textarea").input_value().startswith("The owl saw")
    page.get_by_text("Look inside this text").click()
    page.wait_for_selector(".map circle")
    for tab in ("Look inside", "Reconstruct", "Learn", "Write"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(500)
        page.screenshot(path=tmp_path / f"{tab}.png", full_page=True)
        # Nothing sticks out at the side.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    table = page.locator(".figures").bounding_box()
    assert table["x"] + table["width"] <= width
    assert errors == []
    assert [address for address in addresses if not address.startswith((space, "data:", "blob:"))] == []

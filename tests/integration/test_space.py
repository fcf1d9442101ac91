"""The Space as its users meet it: by `gradio_client` as an API, and in a browser."""

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from space_server import SPACE, running_space

gradio = pytest.importorskip("gradio")
from gradio_client import Client  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

PROMPT = "Once upon a time"
TEXT = "Tom had a red ball. He loved it. One day the ball was gone."

# Temperature, top-p, sentences, seed.
OPTIONS = (0.7, 1.0, 3, 1)

# How long a browser waits for what should come; other work may have the machine.
PATIENCE = 120_000  # ms


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The address of a Space with the models that it begins with."""
    with running_space(tmp_path_factory.mktemp("space") / "log") as (address, _):
        yield address


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
    shown = re.sub(r"<label>.*?</label>|<sup>\d+</sup>|<span class=\"bar\".*?</span>|<[^>]*>", "", marked)
    assert shown == TEXT
    assert picture.count("<circle") == marked.count('class="sentence"') == 3 and "Sentences: 3" in summary
    assert picture.count('class="given"') == 1


def test_a_text_is_no_html(client):
    picture, marked, _ = client.predict("<img src=x> ${1} {{value}}", "", api_name="/look_inside")
    assert not re.search(r"<img|\$\{|\{\{", picture + marked)


def test_sentences_are_written_back_and_noise_spoils_them(client):
    sentences = ["Tom had a red ball.", "He loved it.", "One day the ball was gone."]
    assert client.predict(TEXT, 0, 1, api_name="/reconstruct")["data"] == [[one, one] for one in sentences]
    given, written = zip(*client.predict(TEXT, 2, 1, api_name="/reconstruct")["data"], strict=True)
    assert list(given) == sentences and not set(given) & set(written)


def test_the_way_between_two_sentences_ends_where_writing_them_back_does(client):
    first, last = "Tom had a red ball.", "The dog ran to the tree."
    way = client.predict(first, last, 5, api_name="/between")["data"]
    back = [client.predict(end, 0, 1, api_name="/reconstruct")["data"][0] for end in (first, last)]
    assert [share for share, _ in way] == ["0%", "25%", "50%", "75%", "100%"]
    assert [way[0][1], way[-1][1]] == [written for _, written in back]


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


@contextmanager
def new_page(browser, **options) -> Iterator:
    """A page; what it shows at the end is printed, which pytest hands on where the test fails."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    try:
        yield page
        print("The focus is on", page.evaluate("document.activeElement?.cloneNode().outerHTML"))
        print("\n".join(line[:200] for line in page.locator("body").aria_snapshot().splitlines()))
    finally:
        page.close()


@pytest.fixture
def page(browser):
    with new_page(browser) as page:
        yield page


@pytest.fixture
def phone(browser):
    with new_page(browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        yield page


def test_a_prompt_that_cannot_be_read_is_told_on_the_page(space, page):
    page.goto(space)
    for prompt, message in (("", "There is no text"), ("word " * 200_000, "give at most 8,000")):
        page.get_by_label("How the story begins").fill(prompt)
        page.get_by_role("button", name="Write", exact=True).click()
        page.get_by_text(message).wait_for()


@pytest.mark.parametrize("looks, width", [("light", 1280), ("dark", 390)], ids=["light-desktop", "dark-phone"])
def test_a_browser_shows_every_page_and_asks_nobody_else(space, page, tmp_path, looks, width):
    """SLLM_SCREENSHOTS names a folder that keeps the pictures."""
    pictures = Path(os.environ.get("SLLM_SCREENSHOTS") or tmp_path)
    page.set_viewport_size({"width": width, "height": 900})
    addresses, errors = [], []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{space}/?__theme={looks}")
    # The parts of the page come one by one: before the button is there, Tab goes from the prompt to what lies behind.
    page.get_by_role("button", name="Write", exact=True).wait_for()
    # By keyboard: the prompt, then on to the button behind it.
    page.get_by_label("How the story begins").fill("The owl saw")
    page.keyboard.press("Tab")
    assert focused(page) == "Write" and focus_is_seen(page) and focused(page) == "Write"
    page.keyboard.press("Enter")
    page.get_by_text("Done.", exact=True).wait_for()
    assert page.locator("#written textarea").input_value().startswith("The owl saw")
    page.get_by_text("Look inside this text").click()
    # What a pointer tells is told by keyboard too: a sentence on the map, the bits of a token.
    point = page.locator(".map a").first
    point.focus()
    assert "The owl saw" in page.locator(".map a:focus .caption div").inner_text() and focus_is_seen(page)
    page.get_by_label("Show the bits").press("Space")
    bits = "getComputedStyle(document.querySelector('.sentence > span'), '::after').content"
    assert float(page.evaluate(bits).strip('"')) >= 0
    page.get_by_role("tab", name="Reconstruct", exact=True).click()
    page.get_by_role("button", name="Write back").click()
    page.get_by_role("button", name="Go from one to the other").click()
    page.get_by_text("100%").locator("visible=true").first.wait_for()
    for tab in ("Look inside", "Reconstruct", "Learn", "Write"):
        page.get_by_role("tab", name=tab, exact=True).click()
        if tab == "Look inside":
            point.focus()
        page.wait_for_timeout(500)
        page.screenshot(path=pictures / f"{tab.lower().replace(' ', '-')}-{looks}-{width}.png", full_page=True)
        # Nothing sticks out at the side.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    table = page.locator(".figures").bounding_box()
    assert table["x"] + table["width"] <= width
    assert errors == []
    assert [address for address in addresses if not address.startswith((space, "data:", "blob:"))] == []


def test_a_finger_writes_points_and_slides(space, phone):
    phone.goto(space)
    phone.get_by_role("button", name="Write", exact=True).tap()
    phone.get_by_text("Done.", exact=True).wait_for()
    phone.get_by_text("Look inside this text").tap()
    caption = phone.locator(".map a .caption div").nth(1)
    assert not caption.is_visible()
    phone.locator(".map a").nth(1).tap()
    assert caption.is_visible() and caption.inner_text().startswith("2. ")
    phone.get_by_role("tab", name="Reconstruct", exact=True).tap()
    phone.get_by_role("button", name="Write back").tap()
    cells = phone.get_by_role("gridcell")
    cells.nth(3).wait_for()
    given = cells.nth(0).inner_text()
    assert cells.nth(1).inner_text() == given
    noise = phone.get_by_role("slider", name="Noise")
    noise.tap()  # in its middle
    phone.wait_for_function("given => document.querySelectorAll('[role=gridcell]')[1].innerText !== given", arg=given)
    assert noise.input_value() == "1"


def focused(page) -> str:
    """The words on what has the focus."""
    return page.evaluate("document.activeElement.innerText")


def focus_is_seen(page) -> bool:
    """Whether what has the focus looks other than without it."""
    looks = """element => JSON.stringify([element, ...element.querySelectorAll('*')].map(part => {
        const style = getComputedStyle(part);
        return [style.outline, style.boxShadow, style.borderColor, style.strokeWidth];
    }))"""
    focused = page.evaluate_handle("document.activeElement")
    page.wait_for_timeout(300)
    with_focus = focused.evaluate(looks)
    focused.evaluate("element => element.blur()")
    page.wait_for_timeout(300)
    without = focused.evaluate(looks)
    focused.evaluate("element => element.focus()")
    return with_focus != without


def test_a_key_that_comes_before_its_button_is_not_lost(space, page):
    """The prompt is there before the button is, for long where scripts come slowly."""
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/queue/join?") else None)
    page.add_init_script("""
        const observer = new MutationObserver(() => {
            const prompt = document.querySelector("#prompt textarea");
            if (!prompt) return;
            observer.disconnect();
            prompt.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", ctrlKey: true, bubbles: true}));
        });
        observer.observe(document, {subtree: true, childList: true});
    """)
    page.goto(space)
    page.get_by_text("Done.", exact=True).wait_for()
    assert len(asked) == 1


def test_a_text_is_stopped_edited_and_gone_on_with(space, page):
    page.goto(space)
    page.get_by_text("Options").click()
    # A text without sense does not come to its end before it is stopped.
    page.get_by_label("number input for Temperature").fill("2")
    page.locator("#most input[type=number]").fill("30")
    page.locator("#prompt textarea").press("Control+Enter")
    page.wait_for_function("document.querySelector('#written textarea').value.length > 30")
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelector('.figures caption').textContent === 'Stopped.'")
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

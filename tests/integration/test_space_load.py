"""Many browsers at once on one Space; prints how soon it starts and answers.

`pytest tests/integration/test_space_load.py -m slow -s` is the whole: 20 browsers, 100 requests.
"""

import asyncio
import shutil
import statistics
import time

import pytest
from space_server import SPACE, running_space
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_sllm.embedded import embedded_checkpoint

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.async_api", reason="needs playwright")

CHROMIUM = shutil.which("chromium")
NAMES = ["Anna", "Ben", "Clara", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jack"]
NAMES += ["Kate", "Leo", "Mia", "Noah", "Ola", "Pete", "Rosa", "Sam", "Tina", "Will"]
THINGS = ["a red ball", "a big dog", "an old hat", "a small boat", "a green frog"]

# From the click, in the page itself, so that asking for it takes no time: milliseconds until a sentence is there.
FIRST_SENTENCE = """prompt => new Promise(done => {
    const text = () => document.querySelector('#written textarea').value;
    const begun = performance.now();
    const look = () => text().length > prompt.length && text().startsWith(prompt)
        ? done(performance.now() - begun) : setTimeout(look, 5);
    document.querySelector('#start').click();
    look();
})"""

# Other work may have the machine.
PATIENCE = 120_000  # ms


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium), which is absent")
@pytest.mark.parametrize(
    "browsers, requests", [(3, 2), pytest.param(20, 5, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_each_browser_gets_what_its_prompt_and_seed_give_alone(tmp_path, monkeypatch, browsers, requests):
    monkeypatch.syspath_prepend(SPACE)
    asked = [[(f"{NAMES[b]} saw {THINGS[r]}", 100 * b + r) for r in range(requests)] for b in range(browsers)]
    expected = written_alone([request for rows in asked for request in rows])
    assert len(set(expected.values())) == browsers * requests
    with running_space(tmp_path / "log") as (address, start_up):
        answers, first, seconds = asyncio.run(visit(address, asked))
    print(f"\nstart-up: {start_up:.1f} s")
    print(f"click to first sentence, one browser, median of {len(first)}: {statistics.median(first):.2f} s")
    print(f"{browsers} browsers, {browsers * requests} requests: {seconds:.1f} s")
    assert answers == [[(expected[request], expected[request], 0) for request in rows] for rows in asked]


def written_alone(asked: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """What the model writes for each prompt and seed without the Space, with the options that its page begins with."""
    from writing import Settings, Writer, race

    model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint()).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    texts = {}
    for prompt, seed in asked:
        writer = Writer(model, tokenizer, prompt, Settings(seed=seed), by_sentence=True)
        for _ in race([writer]):
            pass
        texts[prompt, seed] = writer.text
    return texts


async def visit(
    address: str, asked: list[list[tuple[str, int]]]
) -> tuple[list[list[tuple[str, str, int]]], list[float], float]:
    """Each browser's answers, seconds to the first sentence of one alone, and seconds of all requests.

    An answer is both columns' texts and the number of messages on the page.
    """
    async with playwright.async_playwright() as running:
        browser = await running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        pages = []
        for _ in asked:
            page = await (await browser.new_context()).new_page()  # a session of its own
            page.set_default_timeout(PATIENCE)
            await page.goto(address)
            await page.get_by_text("Options").click()
            pages.append(page)
        animals = ("cat", "dog", "hen", "cow", "pig")[: len(asked[0])]
        first = [await first_sentence(pages[0], f"The {animal} was") for animal in animals]
        begun = time.monotonic()
        answers = await asyncio.gather(*map(ask, pages, asked))
        seconds = time.monotonic() - begun
        await browser.close()
    return answers, first, seconds


async def first_sentence(page, prompt: str) -> float:
    """Seconds from the click to the first sentence."""
    await page.locator("#prompt textarea").fill(prompt)
    milliseconds = await page.evaluate(FIRST_SENTENCE, prompt)
    await is_done(page)
    return milliseconds / 1000


async def ask(page, rows: list[tuple[str, int]]) -> list[tuple[str, str, int]]:
    """The answers of one browser, one after the other."""
    answers = []
    for prompt, seed in rows:
        await page.locator("#prompt textarea").fill(prompt)
        await page.locator("#seed input").fill(str(seed))
        await page.locator(".figures caption").evaluate("caption => { caption.textContent = '' }")
        await page.locator("#start").click()
        await is_done(page)
        columns = [await page.locator(f"#{name} textarea").input_value() for name in ("written", "beside")]
        answers.append((*columns, await page.locator(".toast-body").count()))
    return answers


async def is_done(page) -> None:
    """Waits until the page says that the text is done; else tells what it shows."""
    try:
        await page.wait_for_function("document.querySelector('.figures caption')?.textContent === 'Done.'")
    except playwright.TimeoutError as error:
        error.add_note(await page.locator("body").aria_snapshot())
        raise

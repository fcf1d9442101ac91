"""The page of features, in a browser."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from hf_sllm.interpretability.explanations import Explanation, ExplanationScore
from hf_sllm.interpretability.page import feature_records, write_page

EVIL = "<script>document.title = 'broken'</script><b>bold</b></script>"


def made(path, features, sentences):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(sentences, features, generator=generator)
    activations = values * (values > 0.95)
    texts = [f"The animal number {i} went to the old house with its best friend." for i in range(sentences)]
    texts[int(activations[:, 0].argmax())] = EVIL
    at = torch.arange(sentences)
    vectors = SimpleNamespace(text=texts, document=at // 10, sentence=at % 10)
    names = [Explanation(j, 1, f'"word{j}", {EVIL if j == 0 else "a quote"}', ("x",)) for j in range(features)]
    scores = [ExplanationScore(j, 1, 0.9 - j / 2 / features, 0.5, 0.8, 0.05) for j in range(features)]
    strip = [[s, f"{s:+} is what is written when this feature is turned."] for s in (-2, -1, -0.5, 0, 0.5, 1, 2)]
    effect = {"steering": strip, "pos_str": ["the"] * 10, "neg_str": ["a"] * 10}
    effects = {(j, 1): effect for j in range(features)}
    decoder = torch.randn(features, 16, generator=generator)
    records = feature_records(activations, vectors, decoder, names, scores, effects)
    write_page(records, vectors, path, {"model": EVIL})
    return records


def test_a_page_of_a_thousand_features_is_small_and_a_line_of_each_lies_beside(tmp_path):
    records = made(tmp_path / "page.html", features=1000, sentences=6000)
    assert (tmp_path / "page.html").stat().st_size < 5e6
    lines = [json.loads(line) for line in (tmp_path / "features.jsonl").read_text().splitlines()]
    assert len(lines) == len(records) == 1000
    assert lines[0]["activations"][0]["text"] == EVIL and lines[0]["frac_nonzero"] == pytest.approx(0.05, abs=0.01)
    assert sum(lines[0]["freq_hist_data_bar_heights"]) == round(lines[0]["frac_nonzero"] * 6000)


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_page_is_read_by_keyboard_and_shows_what_is_evil_as_text(tmp_path, width):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium), which is absent")
    made(tmp_path / "page.html", features=20, sentences=300)
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 844})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{tmp_path / 'page.html'}")
        assert page.title() == "Features of sentences"
        assert EVIL in page.locator("article").inner_text() and page.locator("b").count() == 0
        page.keyboard.press("Tab")
        page.keyboard.type("word7")
        assert page.locator("#count").inner_text() == "1 of 20 features"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="+7 ").wait_for()
        assert page.locator("output").inner_text().startswith("0: ")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        assert page.locator("output").inner_text().startswith("0.5: ")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert len(asked) == 1 and errors == []
        browser.close()

"""The Gradio Space: write with an SLLM, look inside it, reconstruct sentences, learn how it works.

`python app.py` runs it offline with the checkpoints that come with hf_sllm. Environment variables name other models:

- SLLM_MODEL: the SLLM;
- SLLM_BASELINE: the model that writes token by token beside it;
- SLLM_SENTENCE_VAE: a sentence VAE, or an SLLM that was trained to reconstruct, for the page "Reconstruct".
"""

import collections
import functools
import inspect
import os
import random
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import inside
import reconstruct
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from writing import Settings, Writer, race

import hf_sllm  # noqa: F401  registers the auto classes
from hf_sllm.embedded import embedded_checkpoint

HERE = Path(__file__).parent

# About what the embedded model reads; longer texts are refused before they are tokenised.
MAX_CHARACTERS = 8000

# Requests that are worked on in turn, and those that may wait beside them.
AT_ONCE, WAITING = 20, 200

# Seconds between two pictures of a text that is being written; a sentence is shown at once.
REFRESH = 0.15

# How often each browser has pressed Stop. The text that is being written looks here and says itself that it was
# stopped: were it cancelled from outside, a picture of it still under way could come after that word.
STOPS: collections.Counter[str] = collections.Counter()


def told(function: Callable) -> Callable:
    """Shows the errors that a user can cause as messages."""

    def message(error: ValueError) -> gr.Error:
        return gr.Error(escape(str(error)), print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            try:
                yield from function(*args)
            except ValueError as error:
                raise message(error) from error
    else:

        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            try:
                return function(*args)
            except ValueError as error:
                raise message(error) from error

    return wrapper


def check(text: str | None) -> str:
    """The text, if it is one that a model can read.

    Raises:
        ValueError: If it is empty, too long or no Unicode.
    """
    if not text or not text.strip():
        raise ValueError("There is no text: type a few words first.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters: give at most {MAX_CHARACTERS:,}.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("The text has half of a surrogate pair, which is no character: remove it.")
    return text


def load(name: str) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    config = AutoConfig.from_pretrained(name)
    auto_class = AutoModel if config.model_type == "sentence_vae" else AutoModelForCausalLM
    model = auto_class.from_pretrained(name, config=config, dtype=torch.float32).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), AutoTokenizer.from_pretrained(name)


def build() -> gr.Blocks:
    """The whole Space; models are loaded once."""
    sllm = load(os.environ.get("SLLM_MODEL") or embedded_checkpoint())
    if sllm[0].config.model_type != "sllm":
        raise ValueError(f"SLLM_MODEL is a {sllm[0].config.model_type!r} model: give an SLLM.")
    baseline = os.environ.get("SLLM_BASELINE")
    vae = load(os.environ.get("SLLM_SENTENCE_VAE") or embedded_checkpoint("sentence-vae"))
    with gr.Blocks(title="A language model that thinks in sentences", analytics_enabled=False) as demo:
        gr.Markdown("# A language model that thinks in sentences")
        with gr.Tabs() as tabs:
            with gr.Tab("Write", id="write"):
                written, prompt, look = write_page(sllm, load(baseline) if baseline else None)
            with gr.Tab("Look inside", id="inside"):
                inside_page(sllm, written, prompt, look, tabs)
            with gr.Tab("Reconstruct", id="reconstruct"):
                reconstruct_page(vae)
            with gr.Tab("Learn", id="learn"):
                gr.HTML(f'<div class="picture">{(HERE / "how.svg").read_text(encoding="utf-8")}</div>')
                gr.Markdown((HERE / "learn.md").read_text(encoding="utf-8"))
    return demo.queue(default_concurrency_limit=AT_ONCE, max_size=WAITING)


def write_page(sllm: tuple, baseline: tuple | None) -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
    """The page on which two writers go on with a prompt; what they wrote, the prompt, the button to look inside."""
    model, tokenizer = sllm
    other, other_tokenizer = baseline or sllm
    # The first run of a model is slow, and nobody's text should be counted slow for it.
    for _ in race([Writer(*sllm, "", Settings(), True), Writer(other, other_tokenizer, "", Settings(), False)]):
        pass

    @told
    def write(
        prompt: str, temperature: float, top_p: float, max_sentences: int, seed: int | None, request: gr.Request
    ) -> Iterator[tuple[str, str, str]]:
        stops = STOPS[request.session_hash]
        # A browser sends 1.0 as 1, which transformers takes for no temperature.
        settings = Settings(float(temperature), float(top_p), int(max_sentences), int(seed or 0))
        writers = [
            Writer(model, tokenizer, check(prompt), settings, by_sentence=True),
            Writer(other, other_tokenizer, prompt, settings, by_sentence=False),
        ]
        shown = 0.0
        for writer in race(writers):
            if writer.by_sentence or time.monotonic() - shown > REFRESH:
                shown = time.monotonic()
                yield writers[0].text, writers[1].text, figures(writers, "Writing …")
            if STOPS[request.session_hash] > stops:
                break
        done = all(writer.done for writer in writers)
        yield writers[0].text, writers[1].text, figures(writers, "Done." if done else "Stopped.")

    def stop_writing(request: gr.Request) -> None:
        STOPS[request.session_hash] += 1

    with gr.Row():
        prompt = gr.Textbox(
            "Once upon a time",
            label="How the story begins",
            info="Ctrl+Enter writes, Escape stops",
            lines=2,
            max_lines=8,
            scale=3,
            elem_id="prompt",
        )
        with gr.Column(min_width=160):
            start = gr.Button("Write", variant="primary", elem_id="start")
            stop = gr.Button("Stop", elem_id="stop")
    with gr.Accordion("Options", open=False):
        with gr.Row():
            temperature = gr.Slider(0, 2, 0.7, step=0.1, label="Temperature", info="0: always the likeliest token")
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Sample from the likeliest so much")
        with gr.Row():
            max_sentences = gr.Slider(1, 30, 8, step=1, label="Sentences", info="At most", elem_id="most")
            seed = gr.Number(
                1, precision=0, minimum=0, maximum=2**31 - 1, label="Seed", info="Makes a text again", elem_id="seed"
            )
    with gr.Row():
        written = gr.Textbox(
            label="Sentence by sentence (you may edit it)",
            lines=8,
            max_lines=20,
            interactive=True,
            elem_id="written",
            min_width=320,
        )
        beside = gr.Textbox(
            label="Token by token", lines=8, max_lines=20, interactive=False, elem_id="beside", min_width=320
        )
    with gr.Row():
        go_on = gr.Button("Go on from the edited text", elem_id="go-on")
        again = gr.Button("Write another")
        look = gr.Button("Look inside this text")
    shown = gr.HTML(figures([], "What each has done"), label="Figures")
    gr.Markdown(
        f"Token by token writes `{os.path.basename(os.environ['SLLM_BASELINE'].rstrip('/'))}`, a model of its own."
        if baseline
        else "Both columns are one model and, with one seed, one text: an SLLM is an ordinary language model too, and "
        "token by token is transformers' own loop on it. So expect about the same speed and memory here; the "
        "difference is when you see the text. `SLLM_BASELINE` puts another model there."
    )
    options = [temperature, top_p, max_sentences, seed]
    outputs = [written, beside, shown]
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    working = {"outputs": outputs, "concurrency_id": "model", "show_progress": "hidden"}
    start.click(write, [prompt, *options], api_name="write", **working)
    prompt.submit(write, [prompt, *options], api_visibility="private", **working)
    go_on.click(write, [written, *options], api_visibility="private", **working)
    again.click(lambda: random.randrange(2**31), None, seed, queue=False, **quiet).then(
        write, [prompt, *options], api_visibility="private", **working
    )
    stop.click(stop_writing, queue=False, **quiet)
    return written, prompt, look


def figures(writers: list[Writer], state: str) -> str:
    """What each writer has done so far, as an HTML table with the state as its caption."""
    names = ("Sentence by sentence", "Token by token")
    heads = ("", "sentences", "tokens", "tokens / s", "cache", "time")
    rows = []
    for index, name in enumerate(names):
        cells = ["–"] * 5
        if writers:
            writer = writers[index]
            speed = f"{writer.tokens / writer.seconds:.0f}" if writer.seconds else "–"
            size = f"{writer.cache_bytes / 1024:,.0f} KiB"
            cells = [str(writer.sentences), str(writer.tokens), speed, size, f"{writer.seconds:.2f} s"]
        rows.append(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<table class="figures"><caption>{state}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def inside_page(sllm: tuple, written: gr.Textbox, prompt: gr.Textbox, look: gr.Button, tabs: gr.Tabs) -> None:
    """The page that shows what the model makes of a text."""

    @told
    def look_inside(text: str, given: str = "") -> tuple[str, str, str]:
        return inside.look_inside(*sllm, check(text), given or "")

    text = gr.Textbox(
        "Tom had a red ball. He loved it. One day the ball was gone. Tom was sad. Then a dog came with the ball.",
        label="Text",
        lines=3,
        max_lines=12,
        elem_id="text",
    )
    button = gr.Button("Look inside", variant="primary", elem_id="look-inside")
    summary = gr.Markdown(label="Summary")
    with gr.Row():
        # Side by side, and one below the other on a phone.
        with gr.Column(min_width=320):
            picture = gr.HTML(label="Map")
        with gr.Column(min_width=320):
            marked = gr.HTML(label="Surprise")
    gr.Markdown(
        "Each point is a sentence, where its latents lie on the plane in which those of this text vary most. Point at "
        "one, or go to it by Tab, to read it; choose it to find it in the text; hollow ones were given as the prompt. "
        "In the text, a bar ends each sentence, and a token is the more coloured the more bits it surprised the model "
        f"by, fully from {inside.MOST_BITS:.0f} on."
    )
    outputs = [picture, marked, summary]
    button.click(look_inside, [text, prompt], outputs, api_name="look_inside", concurrency_id="model")
    look.click(
        lambda text: (text, gr.Tabs(selected="inside")), written, [text, tabs], queue=False, api_visibility="private"
    ).then(look_inside, [text, prompt], outputs, api_visibility="private", concurrency_id="model")


def reconstruct_page(vae: tuple) -> None:
    """The page on which a decoder writes sentences back from their latents."""

    @told
    def write_back(text: str, noise: float, seed: int | None) -> list[tuple[str, str]]:
        return reconstruct.write_back(*vae, check(text), noise, int(seed or 0))

    @told
    def between(first: str, last: str, steps: int) -> list[tuple[str, str]]:
        return reconstruct.between(*vae, check(first), check(last), int(steps))

    table = {"wrap": True, "interactive": False}
    # One below the other on a phone.
    wide = {"min_width": 240}
    text = gr.Textbox(
        "Tom had a red ball. The dog ran to the tree.", label="Sentences", lines=2, max_lines=8, elem_id="sentences"
    )
    with gr.Row():
        noise = gr.Slider(0, 2, 0, step=0.05, label="Noise", info="In multiples of the latents' own size", **wide)
        seed = gr.Number(1, precision=0, minimum=0, maximum=2**31 - 1, label="Seed of the noise", **wide)
    back = gr.Button("Write back", variant="primary", elem_id="write-back")
    pairs = gr.Dataframe(
        headers=["given", "written back"], column_widths=["50%", "50%"], label="What the latents kept", **table
    )
    gr.Markdown("### From one sentence to another")
    with gr.Row():
        first = gr.Textbox("Tom had a red ball.", label="From", elem_id="from", **wide)
        last = gr.Textbox("The dog ran to the tree.", label="To", elem_id="to", **wide)
        steps = gr.Slider(3, 11, 7, step=1, label="Steps", **wide)
    go = gr.Button("Go from one to the other", elem_id="between")
    way = gr.Dataframe(headers=["way", "sentence"], column_widths=["20%", "80%"], label="Between them", **table)
    back.click(write_back, [text, noise, seed], pairs, api_name="reconstruct", concurrency_id="model")
    # Once the slider is let go, or a key has moved it.
    noise.release(write_back, [text, noise, seed], pairs, api_visibility="private", concurrency_id="model")
    go.click(between, [first, last, steps], way, api_name="between", concurrency_id="model")


def main() -> None:
    """Starts the Space; Gradio takes address and port from GRADIO_SERVER_NAME and GRADIO_SERVER_PORT."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The system's own fonts: nothing is fetched, and every weight is there.
    fonts = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
    # Gradio's orange and its grey are too light to read on white.
    theme = gr.themes.Default(font=fonts, font_mono=fonts).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        body_text_color_subdued="*neutral_500",
    )
    build().launch(
        theme=theme,
        css_paths=HERE / "style.css",
        # As `js` it would run when all of the page is there, and a key pressed before would be lost.
        head=f"<script>({(HERE / 'keys.js').read_text(encoding='utf-8')})();</script>",
        ssr_mode=False,
        footer_links=["api"],
        show_error=True,
    )


if __name__ == "__main__":
    main()

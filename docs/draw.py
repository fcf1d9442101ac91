"""Draws the pictures of how-it-works.md.

python docs/draw.py    # writes docs/pictures/*.svg

What they show is computed, by the model's own segmenter, layout, mask rule and cache. They have a background of their
own, so that they can be read on light pages and on dark ones.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from hf_sllm import SllmForCausalLM
from hf_sllm.data import load_documents
from hf_sllm.embedded import embedded_checkpoint
from hf_sllm.modeling.stream_attention import visible
from hf_sllm.modeling.stream_layout import Stream, lay_out

FOLDER = Path(__file__).parent / "pictures"
DOCUMENTS = Path(__file__).parents[1] / "tests" / "data" / "tiny.jsonl"

TEXT = "<s>Tom had a red ball. He loved it. One day it was gone."
# The text has three sentences; the fourth is the one that is written next.
COLOURS = ["#f2a65a", "#7fb2e5", "#8ccf9b", "#d9a5e0"]
PAPER, INK, FAINT, EMPTY = "#fdfcf8", "#22252b", "#6d717a", "#eceae4"
BACKBONE, DECODER = "#1d6fb8", "#d9601a"

STYLE = {
    # Text stays text, and names in the file do not change from run to run.
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_sllm",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "xtick.color": INK,
    "ytick.color": INK,
}

# Between two points of the curves.
TOKENS_AT_A_TIME = 4

Model = Any  # an SllmForCausalLM


def draw(folder: Path = FOLDER) -> None:
    """Writes all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint())
    pictures: dict[str, Callable[[], Figure]] = {
        "levels": partial(draw_levels, model, tokenizer),
        "masks": partial(draw_masks, model, tokenizer),
        "steps": partial(draw_steps, model, tokenizer),
        "cache": partial(draw_cache, tokenizer),
    }
    with matplotlib.rc_context(STYLE):
        for name, picture in pictures.items():
            picture().savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


class Example:
    """The text as the model lays it out: its tokens, their sentences, and the decoder's stream."""

    def __init__(self, model: Model, tokenizer: PreTrainedTokenizerBase):
        self.ids = tokenizer(TEXT, return_tensors="pt", add_special_tokens=False).input_ids
        self.layout = model.model.segmenter.layout(self.ids, torch.ones_like(self.ids, dtype=torch.bool))
        self.tokens = [str(tokenizer.decode([token_id])).strip() for token_id in self.ids[0].tolist()]
        self.sentence = self.layout.token_sentence.tolist()
        self.prefix_length = model.config.prefix_length
        closes = self.layout.scatter(self.layout.token_closes)
        positions = lay_out(self.layout.mask, closes, self.prefix_length, restart=False)
        self.stream = positions.stream.map(lambda values: values[0])
        self.token_slot, self.output_slot = positions.token_slot[0].tolist(), positions.output_slot[0].tolist()
        self.prefix_slot = self.stream.prefix.nonzero().view(-1, self.prefix_length).tolist()  # of each sentence

    @property
    def labels(self) -> list[str]:
        """What stands at each position of the decoder's stream; a dot is a latent."""
        labels = ["•"] * len(self.stream.sentence)
        for slot, token in zip(self.token_slot, self.tokens, strict=True):
            labels[slot] = token
        return labels


def draw_levels(model: Model, tokenizer: PreTrainedTokenizerBase) -> Figure:
    """The way from tokens to latents, through the backbone, and back to tokens."""
    example = Example(model, tokenizer)
    stream_sentence = example.stream.sentence.tolist()
    slots, prefixes = example.token_slot, example.prefix_slot
    width = len(stream_sentence)
    figure = Figure(figsize=(11, 5.9))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    left = -0.17 * width  # what stands beside the rows is as wide as a share of the picture
    axes.set(xlim=(left, width + 0.4), ylim=(-0.5, 10.7))
    axes.set_axis_off()
    text, encoder, latent, backbone, stream, output = 0.0, 1.9, 3.5, 5.2, 7.6, 9.5

    for slot, token, sentence in zip(slots, example.tokens, example.sentence, strict=True):
        cell(axes, slot, text, token, COLOURS[sentence])
        arrow(axes, (slot + 0.5, text + 0.8), (slot + 0.5, encoder))
    for sentence, prefix in enumerate(prefixes):
        own = [slot for slot, owner in zip(slots, example.sentence, strict=True) if owner == sentence]
        at = prefix[0] + example.prefix_length / 2  # where the backbone predicts this sentence
        box(axes, at - 0.9, backbone, 1.8, 0.8, PAPER)
        note(axes, at, backbone + 0.4, "start" if sentence == 0 else f"after {sentence}", INK, 8)
        if sentence > 0:
            before = prefixes[sentence - 1][0] + example.prefix_length / 2
            arrow(axes, (before + 0.9, backbone + 0.4), (at - 0.9, backbone + 0.4))
        arrow(axes, (at, backbone + 0.8), (at, stream))
        if own:
            middle = (own[0] + own[-1] + 1) / 2
            box(axes, own[0], encoder, own[-1] + 1 - own[0], 0.8, PAPER)
            note(axes, middle, encoder + 0.4, "encoder")
            arrow(axes, (middle, encoder + 0.8), (middle, latent))
            dots(axes, middle, latent, example.prefix_length, COLOURS[sentence])
            following = prefixes[sentence + 1][0] + example.prefix_length / 2
            arrow(axes, (middle, latent + 0.8), (following - 0.5, backbone))
    box(axes, -0.2, stream - 0.25, width + 0.4, 1.3, "none")
    for slot, (label, sentence) in enumerate(zip(example.labels, stream_sentence, strict=True)):
        cell(axes, slot, stream, label, COLOURS[sentence], dark=label == "•")
    # From a token, or from the end of the prefix that follows it, the next one is predicted.
    outputs = [prefixes[0][-1], *example.output_slot]
    for slot, token, sentence in zip(outputs, [*example.tokens, "?"], [*example.sentence, 3], strict=True):
        arrow(axes, (slot + 0.5, stream + 1.05), (slot + 0.5, output))
        cell(axes, slot, output, token, COLOURS[sentence])

    rows = {
        text: ("tokens", "of three sentences"),
        encoder: ("sentence encoder", "each sentence by itself"),
        latent: ("latents", f"{example.prefix_length} for each sentence"),
        backbone: ("backbone", "one position a sentence"),
        stream: ("sentence decoder", "predicted latents, tokens"),
        output: ("what is predicted", "the next token"),
    }
    for height, (title, subtitle) in rows.items():
        axes.text(left + 0.2, height + 0.55, title, va="center", weight="bold")
        axes.text(left + 0.2, height + 0.1, subtitle, va="center", color=FAINT, size=8)
    return figure


def draw_masks(model: Model, tokenizer: PreTrainedTokenizerBase) -> Figure:
    """Who sees what, in each of the three parts."""
    example = Example(model, tokenizer)
    stream = example.stream
    figure = Figure(figsize=(11, 11.2), layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)

    sentence = torch.tensor(example.sentence)
    index = torch.arange(len(sentence))
    tokens = Stream(sentence, index, index, torch.zeros_like(index))
    mask_panel(first, seen(tokens, causal=False, context_length=0), example.sentence, example.tokens)
    first.set_title("encoder: a sentence sees itself, in both directions")

    sees = backbone_dependence(model, example)
    mask_panel(second, sees, [3, 0, 1, 2], ["start", "latents of 1", "latents of 2", "latents of 3"], same=False)
    second.set_title("backbone: sentences before, one position each")

    for axes, context_length, title in (
        (third, 0, "decoder, context 0: the sentence alone, after its latents"),
        (fourth, 6, "decoder, context 6: six positions back as well (pale)"),
    ):
        sees = seen(stream, causal=True, context_length=context_length)
        mask_panel(axes, sees, stream.sentence.tolist(), example.labels)
        axes.set_title(title)
    return figure


def seen(stream: Stream, causal: bool, context_length: int) -> torch.Tensor:
    """`(F, F)` whether the position of a row sees that of a column, by the model's own rule."""
    query, key = stream.map(lambda values: values[:, None]), stream.map(lambda values: values[None])
    return visible(query, key, causal, context_length)


def backbone_dependence(model: Model, example: Example) -> torch.Tensor:
    """`(S + 1, S + 1)` on which latents each of the backbone's predictions depends: where the gradient is not 0."""
    latents, _ = model.encode_sentences(example.ids)
    latents = latents.detach().requires_grad_()
    start = model.model.start_latents.weight
    rows = []
    for prediction in model.predict_next_latents(latents)[0].unbind():
        of_start, of_latents = torch.autograd.grad(prediction.sum(), (start, latents), retain_graph=True)
        rows.append(torch.cat([of_start.abs().sum()[None], of_latents[0].flatten(1).abs().sum(1)]) > 0)
    return torch.stack(rows)


def mask_panel(axes: Axes, sees: torch.Tensor, sentence: list[int], labels: list[str], same: bool = True) -> None:
    """A cell for each pair: in the colour of the sentence that is seen, pale where it is another than one's own."""
    size = len(labels)
    axes.set_facecolor(EMPTY)
    for row, column in sees.nonzero().tolist():
        pale = same and sentence[row] != sentence[column]
        square = Rectangle((column, row), 1, 1, facecolor=COLOURS[sentence[column]], alpha=0.45 if pale else 1.0)
        axes.add_patch(square)
    lines = {"color": PAPER, "linewidth": 1.0}
    axes.hlines(range(1, size), 0, size, **lines)
    axes.vlines(range(1, size), 0, size, **lines)
    axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal", xlabel="is seen", ylabel="sees")
    ticks = [position + 0.5 for position in range(size)]
    axes.set_xticks(ticks, labels, rotation=90 if size > 5 else 0, size=8)
    axes.set_yticks(ticks, labels, size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@torch.no_grad()
def draw_steps(model: Model, tokenizer: PreTrainedTokenizerBase) -> Figure:
    """Which part runs at which token, and how many entries its cache then has in each layer."""
    example = Example(model, tokenizer)
    parts = {
        "decoder": model.model.sentence_decoder.model,
        "encoder": model.model.sentence_encoder.model,
        "backbone": model.model.language_model,
    }
    ran: set[str] = set()
    hooks = [module.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, module in parts.items()]
    steps, cache = [], None
    for token_id in example.ids[0]:
        ran.clear()
        begins = cache is None
        cache = model(token_id.view(1, 1), past_key_values=cache, use_cache=True).past_key_values
        if begins:  # whatever a text begins with, the encoder is called; here on a sentence that nobody reads
            ran.discard("encoder")
        held = {
            "decoder": int((cache.decoder.slots.index >= 0).sum()),
            "backbone": int((cache.entry_sentence >= 0).sum()),
        }
        steps.append({name: str(held.get(name, "")) if name in ran else None for name in parts})
    for hook in hooks:
        hook.remove()

    size = len(steps)
    figure = Figure(figsize=(11, 3.4))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(-4.6, size + 0.3), ylim=(-0.6, 6.1))
    axes.set_axis_off()
    heights = {"backbone": 3.2, "encoder": 2.2, "decoder": 1.2}
    for column, (token, sentence, step) in enumerate(zip(example.tokens, example.sentence, steps, strict=True)):
        cell(axes, column, 4.6, token, COLOURS[sentence])
        for name, height in heights.items():
            box(axes, column + 0.05, height, 0.9, 0.8, EMPTY if step[name] is None else COLOURS[sentence], edge="none")
            note(axes, column + 0.5, height + 0.4, step[name] or "")
        box(axes, column + 0.05, -0.2, 0.9, 0.8, "#c9c6bd", edge="none")
        note(axes, column + 0.5, 0.2, str(column + 1))
    for height, name in {4.6: "token read", **{height: name for name, height in heights.items()}}.items():
        axes.text(-0.3, height + 0.4, name, va="center", ha="right", weight="bold")
    axes.text(-0.3, 0.2, "a bare backbone", va="center", ha="right", weight="bold")
    axes.text(0, 5.75, "Coloured: the part runs. The number: entries that its cache then holds in each layer.", size=9)
    return figure


@torch.no_grad()
def draw_cache(tokenizer: PreTrainedTokenizerBase, backbone_layers: int = 30, decoder_layers: int = 5) -> Figure:
    """How caches grow with the text, in a model with as many layers as SmolLM2-135M and weights that do not matter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=backbone_layers,
        num_attention_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = SllmForCausalLM.from_backbone(
        LlamaForCausalLM(config), tokenizer, encoder_layers=1, decoder_layers=decoder_layers
    ).eval()
    text = " ".join(2 * list(load_documents(DOCUMENTS)["text"]))
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    cache, read, backbone, decoder = None, [], [], []
    for piece in ids.split(TOKENS_AT_A_TIME, dim=1):
        cache = model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        read.append(cache.get_seq_length())
        backbone.append(entries(cache.language_model))
        decoder.append(entries(cache.decoder))

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(read, read, color=FAINT, label="bare backbone: one a token")
    left.plot(
        read, [held / decoder_layers for held in decoder], color=DECODER, label="SLLM's decoder: now and then trimmed"
    )
    left.plot(
        read, [held / backbone_layers for held in backbone], color=BACKBONE, label="SLLM's backbone: one a sentence"
    )
    left.set(title="entries in each layer", xlabel="tokens read", ylim=(0, None), xlim=(0, None))
    right.plot(read, [backbone_layers * count for count in read], color=FAINT, label="bare backbone")
    right.stackplot(
        read, backbone, decoder, colors=[BACKBONE, DECODER], labels=["SLLM's backbone", "SLLM's decoder, on top"]
    )
    title = f"entries in all layers ({backbone_layers} of the backbone, {decoder_layers} of the decoder)"
    right.set(title=title, xlabel="tokens read", ylim=(0, None), xlim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def entries(cache: Any) -> int:
    """Keys that a cache holds, in all its layers."""
    return sum(layer.keys.shape[-2] for layer in cache.layers)


def cell(axes: Axes, x: float, y: float, label: str, colour: str, dark: bool = False) -> None:
    """One token, or one latent of a prefix, in a cell of width 1."""
    box(axes, x + 0.05, y, 0.9, 0.8, PAPER if dark else colour, edge=INK if dark else "none")
    if dark:
        dots(axes, x + 0.5, y, 1, colour)
    else:
        note(axes, x + 0.5, y + 0.38, label, INK, 8 if len(label) < 6 else 7)


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, edge: str = INK) -> None:
    """A box with round corners."""
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=edge))


def dots(axes: Axes, x: float, y: float, count: int, colour: str) -> None:
    """Latents, side by side around x."""
    places = [x + 0.6 * (number - (count - 1) / 2) for number in range(count)]
    axes.scatter(places, [y + 0.4] * count, s=130, c=colour, edgecolors=INK, linewidths=0.8, zorder=3)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A thin arrow."""
    style = {"arrowstyle": "-|>", "color": FAINT, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 1, "mutation_scale": 7}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def note(axes: Axes, x: float, y: float, label: str, colour: str = INK, size: float = 8) -> None:
    """Text around a point."""
    axes.text(x, y, label, ha="center", va="center", color=colour, size=size)


if __name__ == "__main__":
    draw()

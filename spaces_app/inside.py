"""What a model makes of a text, as HTML: its sentences on a map of their latents, and the surprise of each token."""

import html
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from writing import prompt_ids

from hf_sllm.evaluation import score_documents

# What is coloured fully.
MOST_BITS = 10.0

# In units of the drawing; the caption lies below the map.
WIDTH, HEIGHT, MARGIN, CAPTION = 480, 320, 28, 60


@dataclass(frozen=True)
class Sentence:
    """A sentence of the text: its pieces with the bits of each, where it lies on the map, and whether it was given."""

    pieces: list[tuple[str, float]]
    place: tuple[float, float]
    given: bool

    @property
    def text(self) -> str:
        """The sentence itself."""
        return "".join(piece for piece, _ in self.pieces).strip()


def look_inside(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, prompt: str
) -> tuple[str, str, str]:
    """The map, the text and a summary, each as HTML.

    Raises:
        ValueError: If the text is longer than the model reads.
    """
    sentences = read(model, tokenizer, text, prompt)
    bits = [bits for sentence in sentences for _, bits in sentence.pieces]
    counted = f"Sentences: {len(sentences)} · tokens: {len(bits)} · bits per token: {sum(bits) / len(bits):.2f}"
    return draw_map(sentences), mark_text(sentences), counted


@torch.no_grad()
def read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, prompt: str) -> list[Sentence]:
    """The sentences of a text; those that begin within the prompt, if the text begins with it, are given."""
    ids = prompt_ids(model, tokenizer, text)
    scores = next(score_documents(model, tokenizer, [{"text": text}], rule=model.config, progress=False))
    base = model.base_model
    latents, _ = base.encode_sentences(torch.tensor([ids], device=model.device))
    count = int(scores.sentence[:-1].max()) + 1  # a start token that closes a sentence of its own is not shown
    places = project(latents[0, -count:].flatten(1).float().cpu())
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    given = len(prompt) if prompt and text.startswith(prompt) else 0
    pieces: list[list[tuple[str, float]]] = [[] for _ in places]
    begins = [0] * len(places)
    end = 0
    bits = (scores.nats / torch.log(torch.tensor(2.0))).tolist()
    for (_, token_end), token_bits, sentence in zip(offsets, bits, scores.sentence.tolist(), strict=False):
        if not pieces[sentence]:
            begins[sentence] = end
        # Tokens may share a character: it is shown with the first of them.
        pieces[sentence].append((text[end : max(end, token_end)], token_bits))
        end = max(end, token_end)
    rows = zip(pieces, places.tolist(), begins, strict=True)
    return [Sentence(piece, (x, y), begin < given) for piece, (x, y), begin in rows if piece]


def project(points: torch.Tensor) -> torch.Tensor:
    """Points `(S, units)` on the plane in which they vary most, `(S, 2)`, each axis from -1 to 1."""
    centred = points - points.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.zeros(len(points), 2)
    plane[:, : len(axes[:2])] = centred @ axes[:2].T
    largest = plane.abs().amax(0)
    return torch.where(largest > 1e-4, plane / largest.clamp(min=1e-4), 0.0)


def draw_map(sentences: list[Sentence]) -> str:
    """The sentences as numbered points, joined in their order; each leads to its sentence in the text."""

    def at(place: tuple[float, float]) -> tuple[float, float]:
        x, y = place
        return (1 + x) / 2 * (WIDTH - 2 * MARGIN) + MARGIN, (1 - y) / 2 * (HEIGHT - 2 * MARGIN) + MARGIN

    path = " ".join("{:.1f},{:.1f}".format(*at(sentence.place)) for sentence in sentences)
    points = []
    for number, sentence in enumerate(sentences, 1):
        x, y = at(sentence.place)
        label = escape(f"{number}. {sentence.text}")
        kind = "given" if sentence.given else "written"
        points.append(
            f'<a href="#sentence-{number}" aria-label="{label}" class="{kind}"><title>{label}</title>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="11"/>'
            f'<text x="{x:.1f}" y="{y:.1f}" dy="0.35em">{number}</text>'
            # Shown while one points at the sentence or has gone to it by Tab.
            f'<foreignObject class="caption" y="{HEIGHT}" width="{WIDTH}" height="{CAPTION}">'
            f'<div aria-hidden="true">{label}</div></foreignObject></a>'
        )
    return (
        f'<svg class="map" viewBox="0 0 {WIDTH} {HEIGHT + CAPTION}" role="group" aria-label="Map of the sentences">'
        f'<polyline points="{path}"/>{"".join(points)}</svg>'
    )


def mark_text(sentences: list[Sentence]) -> str:
    """The text, its sentences numbered, a bar where each ends, each token the more coloured the less expected."""
    parts = []
    for number, sentence in enumerate(sentences, 1):
        tokens = "".join(
            f'<span style="--share:{min(bits / MOST_BITS, 1):.0%}" title="{bits:.1f} bits" data-bits="{bits:.1f}">'
            f"{escape(piece)}</span>"
            for piece, bits in sentence.pieces
        )
        parts.append(f'<span class="sentence" id="sentence-{number}"><sup>{number}</sup>{tokens}</span>')
    bar = '<span class="bar" aria-hidden="true">|</span>'
    switch = '<label><input type="checkbox"> Show the bits</label>'
    return f'<div class="surprise">{switch}<div class="text">{bar.join(parts)}</div></div>'


def escape(text: str) -> str:
    """Text as HTML that Gradio's templates, which know `${…}` and `{{…}}`, leave alone too."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;")

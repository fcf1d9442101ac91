"""SentenceLens: what each layer of the backbone would say next, if it were the last one (arXiv 2505.22202)."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_sllm.evaluation.loop import evaluation_mode

from .sample import whole_sentences
from .scores import latents_replaced

# What architectures call the norm after their last layer.
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True)
class LensSentence:
    """One place in a text.

    Attributes:
        true: The sentence that stands there; `None` after the end of the text.
        written: What would stand there by the state that enters the backbone's first layer, and by that after each.
    """

    true: str | None
    written: tuple[str, ...]


@torch.no_grad()
def sentence_lens(
    model: Any, tokenizer: PreTrainedTokenizerBase, text: str, alone: bool = False, final_norm: bool = True
) -> list[LensSentence]:
    """Writes each sentence of a text from the state of each layer, greedily, after the true sentences before it.

    A sampled predictor of latents gets the same noise for each layer.

    Args:
        model: An SLLM.
        tokenizer: Its own.
        text: Some sentences; the last one may be open, and is then left out.
        alone: Write from the latents alone, without the tokens before, which the decoder may see and go on from.
        final_norm: Apply the backbone's last norm to inner states as well, without which they have another scale.

    Returns:
        One for each sentence of the text from the second on, and one for the sentence to come.

    Raises:
        ValueError: If the model is no SLLM, or the text has no whole sentence.
    """
    with evaluation_mode(model):
        given = whole_sentences(model, tokenizer, text)
        row, ends = given.token_ids, given.ends
        token_ids = torch.tensor([row], device=model.device)
        states = _states(model.model, given.latents, given.mask, final_norm)  # (layers + 1, closed + 1, width)
        position_ids = torch.arange(states.shape[1], device=states.device)[None]
        predicted = [model.model.latents_from(layer[None], position_ids) for layer in states]

        def text_of(ids: Any) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

        found = []
        for number, end in enumerate(ends, start=1):
            following = ends[number] if number < len(ends) else None
            written = []
            for layer in predicted:
                if alone:
                    (ids,) = model.decode_latents(layer[0, number : number + 1])
                else:
                    latents = torch.cat([predicted[-1][:, :number], layer[:, number : number + 1]], 1)
                    ids = _write_on(model, token_ids[:, :end], latents)
                written.append(text_of(ids))
            true = None if following is None else text_of(row[end:following])
            found.append(LensSentence(true, tuple(written)))
        return found


def _states(body: Any, latents: torch.Tensor, mask: torch.Tensor, final_norm: bool) -> torch.Tensor:
    """The states `(layers + 1, sentences + 1, width)` of the backbone, before its first layer and after each."""
    seen: list[tuple[torch.Tensor, ...]] = []

    def keep(module: nn.Module, arguments: tuple, output: Any) -> None:
        seen.append(output.hidden_states)

    def ask(module: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
        return arguments, {**keywords, "output_hidden_states": True}

    handles = (
        body.language_model.register_forward_pre_hook(ask, with_kwargs=True),
        body.language_model.register_forward_hook(keep),
    )
    try:
        body.predict_next_latents(latents, mask)
    finally:
        for handle in handles:
            handle.remove()
    ((*inner, last),) = seen
    norms = [getattr(body.language_model, name) for name in FINAL_NORMS if hasattr(body.language_model, name)]
    if final_norm and norms:
        inner = [norms[0](state) for state in inner]
    return torch.cat([*inner, last])


def _write_on(model: Any, token_ids: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """The tokens of one more sentence after whole ones, `(1, length)`, if the backbone predicted these latents `(1,
    sentences + 1, num_latents, latent_size)`."""
    with latents_replaced(model.base_model.sentence_decoder, latents):
        # With a mask, or a start token that is the padding's too would be taken for padding.
        mask = torch.ones_like(token_ids)
        text = model.generate(token_ids, attention_mask=mask, max_sentences=1, do_sample=False, num_beams=1)
    return text[0, token_ids.shape[1] :]


def print_lens(found: list[LensSentence], console: Console) -> None:
    """A table for each sentence: what stands there, and what each layer says."""
    for place in found:
        title = place.true or "… the sentence to come"
        table = Table(box=SIMPLE_HEAD, title_justify="left", title=title, show_header=False)
        table.add_column(justify="right", style="dim")
        table.add_column()
        for layer, text in enumerate(place.written):
            name = "before any layer" if layer == 0 else f"layer {layer}"
            table.add_row(name, text, style="green" if text == place.true else None)
        console.print(table)


__all__ = ["LensSentence", "print_lens", "sentence_lens"]

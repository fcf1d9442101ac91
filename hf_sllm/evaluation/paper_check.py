"""Whether a figure is a likelihood: one small model trained on random tokens, with right masks and with wrong ones.

Texts are drawn so that their entropy is known: a model that sees only what comes before cannot use fewer bits on
average. The released code of SentenceVAE (github.com/BestAnHongjun/SentenceVAE, commit 8e323e4) differs from this
library's in two masks (`sentence_vae/models/sentence_llm_model.py`, in training and evaluation alike):

- lines 134-135: the backbone's layers are called without an attention mask, so a sentence is predicted from its own
  latent and from all later ones. (OPT's layers in the transformers of that time add no mask by themselves.)
- lines 153-163: a sentence is decoded under the mask of the sentence before it. That hides no token that is scored,
  but it says which ones are: as many as the sentence before has, then an end. What the sentence has more is left out;
  if it has fewer, padding is scored in place of its end. So what is scored is not the text.

Each row of the check has one of these, and all else the same.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM

from hf_sllm.modeling import SllmForCausalLM

# A text is START and SENTENCES sentences; each has 1 to LONGEST symbols, every number as likely, and END.
START, END, PADDING, FIRST_SYMBOL = 0, 1, 2, 3
SYMBOLS, LONGEST, SENTENCES = 16, 4, 4

WIDTH = 64
LEARNING_RATE = 3e-3
BATCH_SIZE = 64
HELD_OUT = 512

Sentences = list[list[int]]  # of one text, without START


@dataclass(frozen=True)
class PaperCheckRow:
    """What was measured in one way.

    Attributes:
        name: What is wrong, if anything.
        bits_per_token: What the model uses on held-out texts, over the tokens of these texts.
        entropy: What no causal model can fall below on average, in bits per token of the same texts.
        standard_error: Of the difference, over the texts.
    """

    name: str
    bits_per_token: float
    entropy: float
    standard_error: float

    @property
    def below(self) -> bool:
        """Whether the bits are below the entropy, by more than three standard errors."""
        return self.entropy - self.bits_per_token > 3 * self.standard_error


def paper_check(steps: int = 500, seed: int = 0, progress: bool = True) -> tuple[PaperCheckRow, ...]:
    """Trains the paper's architecture on independent uniform symbols: with right masks, then with each one wrong.

    Args:
        steps: Of training, each on 64 new texts of 4 sentences. The default takes about half a minute in each way.
        seed: Of the weights, which begin alike in every way, and of the texts, which are the same.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If `steps` or `seed` cannot be.
    """
    if steps < 1:
        raise ValueError(f"`steps` is {steps}: it must be at least 1.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}: it must be at least 0.")
    ways: tuple[tuple[str, Callable[[SllmForCausalLM], AbstractContextManager], bool], ...] = (
        ("both masks right", nullcontext, False),
        ("backbone without its causal mask", without_causal_mask, False),
        ("decoder with the neighbour's mask", nullcontext, True),
    )
    rows = []
    for name, broken, neighbours_mask in ways:
        model = small_model(seed)
        with broken(model):
            train(model, neighbours_mask, steps, seed, name if progress else None)
            rows.append(measure(model, neighbours_mask, seed, name))
    return tuple(rows)


def small_model(seed: int) -> SllmForCausalLM:
    """The paper's architecture around a backbone of OPT's, as there, with 2 layers."""
    config = AutoConfig.for_model(
        "opt",
        vocab_size=FIRST_SYMBOL + SYMBOLS,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=SENTENCES * (LONGEST + 1) + 1,
        init_std=0.1,
        initializer_range=0.1,
        bos_token_id=START,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SllmForCausalLM.from_backbone(
            AutoModelForCausalLM.from_config(config),
            preset="paper",
            encoder_layers=1,
            decoder_layers=1,
            boundary_token_ids=[END],
            max_sentence_length=LONGEST + 2,  # START counts as a token of the first sentence
        )
    # In this mode the loss is the cross-entropy that is measured: without dropout, focal factor and stop head's term.
    return model.eval()


@contextmanager
def without_causal_mask(model: SllmForCausalLM) -> Iterator[None]:
    """Within it, the backbone sees all sentences of a text, the one to predict and later ones too."""

    def show_all(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        present = kwargs["attention_mask"].bool()  # (batch, sentences)
        everything = present[:, None, None, :].expand(-1, 1, present.shape[1], -1)
        return args, {**kwargs, "attention_mask": everything}

    handle = model.model.language_model.register_forward_pre_hook(show_all, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def encoding(model: SllmForCausalLM, texts: list[Sentences]) -> Iterator[None]:
    """Within it, the latents are those of these texts' sentences, whatever the decoder is given to write."""

    def encode_texts(module: torch.nn.Module, args: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        token_ids, mask = padded(texts)
        layout = model.model.segmenter.layout(token_ids, mask)
        return model.get_input_embeddings()(token_ids.flatten()[layout.token_index]), layout.token_sentence

    handle = model.model.sentence_encoder.register_forward_pre_hook(encode_texts)
    try:
        yield
    finally:
        handle.remove()


def under_neighbours_mask(text: Sentences) -> Sentences:
    """What is scored where each sentence has the mask of the one before: so many of its tokens, then an end; padding
    where it has fewer. The first sentence keeps its own."""
    lengths = [len(sentence) - 1 for sentence in text]
    written = [text[0]]
    for sentence, length in zip(text[1:], lengths[:-1], strict=True):
        symbols = sentence[:-1][:length]
        written.append([*symbols, *[PADDING] * (length - len(symbols)), END])
    return written


def token_nats(model: SllmForCausalLM, texts: list[Sentences], neighbours_mask: bool) -> torch.Tensor:
    """`(texts, length)` negative log-likelihood of each token that the decoder writes, 0 for padding of the batch."""
    written = [under_neighbours_mask(text) for text in texts] if neighbours_mask else texts
    token_ids, mask = padded(written)
    with encoding(model, texts) if neighbours_mask else nullcontext():
        logits = model(input_ids=token_ids, attention_mask=mask.long()).logits
    nats = F.cross_entropy(logits[:, :-1].transpose(1, 2), token_ids[:, 1:], reduction="none")
    return nats * mask[:, 1:]


def train(model: SllmForCausalLM, neighbours_mask: bool, steps: int, seed: int, title: str | None) -> None:
    """Minimises the mean over the tokens; every text is new, so nothing can be learnt by heart."""
    generator = torch.Generator().manual_seed(2 * seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    console = Console(stderr=True)
    for _ in track(range(steps), title or "", console=console, disable=title is None, transient=True):
        texts = draw_texts(BATCH_SIZE, generator)
        nats = token_nats(model, texts, neighbours_mask)
        optimizer.zero_grad()
        (nats.sum() / nats.count_nonzero()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def measure(model: SllmForCausalLM, neighbours_mask: bool, seed: int, name: str) -> PaperCheckRow:
    """Scores held-out texts; each is compared with the bits that its own drawing took, so luck in them cancels."""
    texts = draw_texts(HELD_OUT, torch.Generator().manual_seed(2 * seed + 1))
    batches = [texts[first : first + BATCH_SIZE] for first in range(0, len(texts), BATCH_SIZE)]
    nats = torch.cat([token_nats(model, batch, neighbours_mask).double().sum(1) for batch in batches])
    drawn = torch.tensor([bits_of(text) for text in texts], dtype=torch.float64)
    return make_row(name, nats / math.log(2), drawn, sum(len(sentence) for text in texts for sentence in text))


def make_row(name: str, bits: torch.Tensor, drawn: torch.Tensor, tokens: int) -> PaperCheckRow:
    """From the bits `(texts,)` a model uses for each text, and those each was drawn with."""
    error = (bits - drawn).std().item() * math.sqrt(len(bits)) / tokens
    return PaperCheckRow(name, bits.sum().item() / tokens, drawn.sum().item() / tokens, error)


def bits_of(text: Sentences) -> float:
    """Negative log2-probability with which a text is drawn: of the length of each sentence, and of each symbol."""
    return sum(math.log2(LONGEST) + (len(sentence) - 1) * math.log2(SYMBOLS) for sentence in text)


def draw_texts(count: int, generator: torch.Generator) -> list[Sentences]:
    """Texts of independent uniform symbols, in sentences of independent uniform lengths."""
    lengths = torch.randint(1, LONGEST + 1, (count, SENTENCES), generator=generator).tolist()
    symbols = torch.randint(SYMBOLS, (count, SENTENCES, LONGEST), generator=generator) + FIRST_SYMBOL
    return [
        [[*sentence[:length], END] for sentence, length in zip(text, sizes, strict=True)]
        for text, sizes in zip(symbols.tolist(), lengths, strict=True)
    ]


def padded(texts: list[Sentences]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `(texts, length)`, START first, and the mask that is true where a text has a token."""
    rows = [torch.tensor([START, *(token for sentence in text for token in sentence)]) for text in texts]
    token_ids = pad_sequence(rows, batch_first=True, padding_value=-1)
    return token_ids.clamp(min=0), token_ids >= 0


__all__ = ["PaperCheckRow", "paper_check"]

"""One run, both sides: measures a model, and the one that it is held against, on the same documents."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from hf_sllm.data.statistics import sentence_rule

from .bits_per_byte import by_sentence_length, entropy_floor, total_bits
from .context import context_use, needle
from .latent_prediction import latent_prediction
from .likelihood import default_window, score_documents
from .parallel import parallel_cost
from .reconstruction import reconstruction
from .results import Evaluation, Likelihood, Side
from .shortlist import shortlist_coverage
from .stopping import stopping
from .writing import brier_lm, writing

if TYPE_CHECKING:
    from datasets import Dataset

VERSIONS_OF = ("hf-sllm", "torch", "transformers")


def evaluate(
    model: str,
    documents: "Dataset",
    data: Sequence[str],
    against: str | None = None,
    measures: Sequence[str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
    keep: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Measures a model, and one to hold it against, on the same documents, with the same seed and window.

    Args:
        model: Path or name of a causal language model, or of a sentence VAE.
        documents: Rows with a `text`.
        data: Where they come from, for the record.
        against: Path or name of the other one, of any causal language model.
        measures: Some of `MEASURES`; by default all that fit the model. One that cannot be taken, because the
            documents are too short for it for instance, is noted with the reason, and the others go on.
        window, stride: See `score_documents`; by default the most that both sides read at once, and half of it.
        batch_size: Texts at a time.
        seed: Of what is drawn.
        progress: Whether to show progress bars, on standard error.
        keep: Called with what there is so far, whenever a figure has come in: so that nothing measured is lost.

    Raises:
        ValueError: If a measure is unknown, or there is no document.
    """
    unknown = sorted(set(measures or ()) - set(MEASURES))
    if unknown:
        raise ValueError(f"`measures` has {', '.join(unknown)}: there are {', '.join(MEASURES)}.")
    if len(documents) == 0:
        raise ValueError("`documents` is empty: there is nothing to measure.")
    names = [model] if against is None else [model, against]
    models = [_load(name) for name in names]
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in names]
    rules = _rules([one.config for one in models], tokenizers)
    window = default_window(*models) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    found = Evaluation(
        data=list(data),
        documents=len(documents),
        bytes=sum(len(text.encode(errors="replace")) for text in documents["text"]),
        floor=entropy_floor(documents),
        window=window,
        stride=stride,
        seed=seed,
        sides=[
            Side(
                name,
                one.config.model_type,
                one.num_parameters(),
                samples_latents=getattr(one.config, "samples_latents", False),
            )
            for name, one in zip(names, models, strict=True)
        ],
        versions={name: version(name) for name in VERSIONS_OF},
    )
    for measure in measures or default_measures(models[0]):
        for index, (side, one, tokenizer, rule) in enumerate(zip(found.sides, models, tokenizers, rules, strict=True)):
            if progress:
                Console(stderr=True).print(f"{measure}: {side.name}", style="dim", highlight=False)
            others = [] if len(models) == 1 else [(models[1 - index], tokenizers[1 - index])]
            judge = next((other for other in others if other[0].config.model_type != "sentence_vae"), None)
            given = Settings(tokenizer, documents, rule, window, stride, batch_size, seed, progress, judge)
            try:
                side.figures[measure] = MEASURES[measure](one, given)
            except (ValueError, ImportError) as error:
                side.failures[measure] = str(error)
            if keep is not None:
                keep(found)
    return found


def _load(name: str) -> PreTrainedModel:
    """In float32, where a figure counts. Adapters are found with the language model that they adapt."""
    is_adapter = find_adapter_config_file(name) is not None
    is_vae = not is_adapter and AutoConfig.from_pretrained(name).model_type == "sentence_vae"
    model: Any = (AutoModel if is_vae else AutoModelForCausalLM).from_pretrained(name, dtype=torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _rules(
    configs: Sequence[PreTrainedConfig], tokenizers: Sequence[PreTrainedTokenizerBase]
) -> list[PreTrainedConfig]:
    """Where sentences end, for each side: as its own config has it; a bare model's are those of the other side if it
    has the same tokens."""
    own = [config if hasattr(config, "boundary_token_ids") else None for config in configs]
    rules = []
    for rule, tokenizer in zip(own, tokenizers, strict=True):
        if rule is None:
            shared = [
                other
                for other, others in zip(own, tokenizers, strict=True)
                if other is not None and others.get_vocab() == tokenizer.get_vocab()
            ]
            rule = shared[0] if shared else sentence_rule(tokenizer)
        rules.append(rule)
    return rules


def default_measures(model: PreTrainedModel) -> list[str]:
    """All that such a model can be measured by."""
    if model.config.model_type == "sentence_vae":
        return ["reconstruction"]
    return [name for name in MEASURES if name not in LOSS_OF or getattr(model.config, LOSS_OF[name], 0) > 0]


@dataclass(frozen=True)
class Settings:
    """What every measure is given beside the model."""

    tokenizer: PreTrainedTokenizerBase
    documents: "Dataset"
    rule: PreTrainedConfig
    window: int
    stride: int
    batch_size: int
    seed: int
    progress: bool
    judge: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None


def _likelihood(model: PreTrainedModel, given: Settings) -> Likelihood:
    begun = time.monotonic()
    scores = list(
        score_documents(
            model,
            given.tokenizer,
            given.documents,
            given.rule,
            given.window,
            given.stride,
            given.batch_size,
            given.progress,
        )
    )
    total = dataclasses.replace(total_bits(scores), seconds=time.monotonic() - begun)
    return Likelihood(total, by_sentence_length(scores), stopping(scores))


def _drawn(
    measure: Callable[..., Any], by_rule: bool = False, judged: bool = False
) -> Callable[[PreTrainedModel, Settings], Any]:
    """A measure that draws something; it may have to be told where sentences end, or need the other side as judge."""

    def run(model: PreTrainedModel, given: Settings) -> Any:
        return measure(
            model,
            given.tokenizer,
            given.documents,
            *([given.rule] if by_rule else []),
            batch_size=given.batch_size,
            seed=given.seed,
            progress=given.progress,
            **({"judge": given.judge} if judged else {}),
        )

    return run


def _reconstruction(model: PreTrainedModel, given: Settings) -> Any:
    return reconstruction(
        model, given.tokenizer, given.documents, given.batch_size, given.progress, compare_texts=True
    )


def _shortlist(model: PreTrainedModel, given: Settings) -> Any:
    return shortlist_coverage(
        model, given.tokenizer, given.documents, batch_size=given.batch_size, progress=given.progress
    )


def _parallel(model: PreTrainedModel, given: Settings) -> Any:
    return parallel_cost(model, given.tokenizer, given.documents, batch_size=given.batch_size, progress=given.progress)


MEASURES: dict[str, Callable[[PreTrainedModel, Settings], Any]] = {
    "likelihood": _likelihood,
    "context": _drawn(context_use, by_rule=True),
    "needle": _drawn(needle, by_rule=True),
    "writing": _drawn(writing, by_rule=True),
    "brier": _drawn(brier_lm),
    "reconstruction": _reconstruction,
    "shortlist": _shortlist,
    "parallel": _parallel,
    "latent_prediction": _drawn(latent_prediction, judged=True),
}

# Measures taken by default only where the config gives this loss a weight: without it most models cannot be measured.
LOSS_OF = {
    "reconstruction": "reconstruction_weight",
    "shortlist": "bag_of_words_weight",
    "parallel": "next_latent_weight",
    "latent_prediction": "latent_prediction_weight",
}

"""How healthy latents are: what they hold, what of it the decoder uses, and how much noise it bears.

`matplotlib` is needed only where a figure is drawn, and is imported there.
"""

from .findings import findings
from .plots import plot_latents
from .refinement import Refined, refine_latents
from .results import LatentHealth
from .run import inspect_latents
from .sentence_futures import SentenceFutures, plot_futures, print_futures, sentence_futures
from .sentence_lens import LensSentence, print_lens, sentence_lens
from .tables import print_latents

__all__ = [
    "LatentHealth",
    "LensSentence",
    "Refined",
    "SentenceFutures",
    "findings",
    "inspect_latents",
    "plot_futures",
    "plot_latents",
    "print_futures",
    "print_latents",
    "print_lens",
    "refine_latents",
    "sentence_futures",
    "sentence_lens",
]

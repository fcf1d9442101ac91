"""Corpora written or embedded with a model, in parts that a run which is killed does not lose."""

from .latents import EmbedSettings, SentenceEmbedder
from .parts import Shard
from .results import Corpus
from .run import Job, embed_corpus, write_corpus
from .texts import TextWriter, WriteSettings

__all__ = [
    "Corpus",
    "EmbedSettings",
    "Job",
    "SentenceEmbedder",
    "Shard",
    "TextWriter",
    "WriteSettings",
    "embed_corpus",
    "write_corpus",
]

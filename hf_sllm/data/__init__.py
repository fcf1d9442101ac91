"""Texts in, training examples out.

`datasets` is needed only where texts are read from a file or the Hub or become examples, and is imported there, so
that a model can be used without it.
"""

from .blocks import BlockCollator, document_ids, make_blocks, start_token_id
from .casts import CastDocument, CastSettings, CastTotals, sample_casts, write_casts
from .chats import load_chats
from .documents import load_documents
from .pieces import cut_documents, spread
from .plot import plot_sentence_lengths
from .sampled_documents import Fact
from .statistics import SentenceStatistics, sentence_rule, sentence_statistics
from .tokenizer import train_tokenizer
from .woven_facts import (
    WovenDocument,
    WovenFactSettings,
    WovenTotals,
    sample_woven_facts,
    write_woven_facts,
)

__all__ = [
    "BlockCollator",
    "CastDocument",
    "CastSettings",
    "CastTotals",
    "Fact",
    "SentenceStatistics",
    "WovenDocument",
    "WovenFactSettings",
    "WovenTotals",
    "cut_documents",
    "document_ids",
    "load_chats",
    "load_documents",
    "make_blocks",
    "plot_sentence_lengths",
    "sample_casts",
    "sample_woven_facts",
    "sentence_rule",
    "sentence_statistics",
    "spread",
    "start_token_id",
    "train_tokenizer",
    "write_casts",
    "write_woven_facts",
]

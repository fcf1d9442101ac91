"""What memory bandwidth allows: each step reads all weights that it uses, and the cache of each row, from memory.

The bound holds where reading takes longer than computing, as it does for small batches. A step's activations are not
counted, nor is an SLLM's decoder window, whose length does not grow with the context.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel


def memory_bandwidth(device: torch.device, dtype: torch.dtype, size: int = 2**28, repeats: int = 5) -> float:
    """Bytes per second that are read from memory: the best of several sums and matrix-vector products.

    Args:
        dtype: Of the product.
        size: Bytes to read, more than any of the device's caches holds.
    """
    # Ones: memory that nobody has written may be one page of zeros, which stays in the cache.
    matrix = torch.ones(size // 2**14, 2**14 // dtype.itemsize, dtype=dtype, device=device)
    vector = torch.ones(matrix.shape[1], dtype=dtype, device=device)
    integers = matrix.view(torch.float32)
    ways: list[Callable[[], torch.Tensor]] = [lambda: matrix @ vector, lambda: integers.sum()]
    threads = torch.get_num_threads()  # a Timer has one by default
    timers = [Timer("way()", globals={"way": way}, num_threads=threads) for way in ways]
    return max(size / timer.timeit(1).mean for timer in timers for _ in range(repeats))


@dataclass(frozen=True)
class Weights:
    """Bytes of weights read.

    Attributes:
        each_token: For one token of each row.
        each_sentence: Besides, for one sentence of each row.
        each_row: Besides, for one token of one row, which no other row reads.
    """

    each_token: int
    each_sentence: int
    each_row: int = 0

    def read_for_token(self, batch_size: int, sentence_length: int, cache_bytes: float) -> float:
        """Bytes for each token written, on the average of a sentence.

        Args:
            cache_bytes: Of one row. An SLLM reads its cache once for each sentence, a bare backbone for each token.
        """
        token, sentence = self.each_token / batch_size + self.each_row, self.each_sentence / batch_size
        if self.each_sentence:
            return token + (sentence + cache_bytes) / sentence_length
        return token + cache_bytes


def weights_read(model: PreTrainedModel, shortlist_size: int | None = None, sentences_at_once: int = 1) -> Weights:
    """A bare backbone reads its layers and its LM head for each token; an SLLM its decoder and its LM head, and for
    each sentence its encoder, its backbone and the maps between. Of the embeddings only a few rows are read.

    Args:
        shortlist_size: With it, an SLLM that was fitted reads so many rows of the LM head for each token, a list for
            each row, and what it guesses the list from.
        sentences_at_once: So many tokens share what an SLLM reads for each token. For each sentence it reads the
            backbone once all the same: to look ahead, or to read what was written.
    """
    head = size_of(model.get_output_embeddings().parameters())
    embeddings = set(model.get_input_embeddings().parameters()) | set(model.get_output_embeddings().parameters())
    everything = size_of(parameter for parameter in model.parameters() if parameter not in embeddings)
    if model.config.model_type != "sllm":
        return Weights(everything + head, 0)
    decoder = size_of(model.get_submodule("model.sentence_decoder").parameters())
    if shortlist_size is None:
        return Weights((decoder + head) // sentences_at_once, everything - decoder)
    rows = head * shortlist_size // model.config.vocab_size
    guess = size_of(model.shortlist_fit)  # type: ignore[arg-type]
    return Weights((decoder + guess) // sentences_at_once, everything - decoder, rows)


def size_of(parameters: Iterable[torch.Tensor]) -> int:
    """In bytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)

"""transformers' own OpenAI-compatible server, to which SLLMs are known.

What it adds: the model's class where the server looks for it, sentences instead of tokens in the stream, the start
token before a plain prompt, and a chat template where the tokenizer has none. Requests, queues and answers are the
server's.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from hf_sllm.data import start_token_id
from hf_sllm.modeling import SllmForCausalLM

# What the turns of a chat are to a model that was never taught to chat: the text to go on with, a line for each.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or eos_token }}"
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)

# The decoding methods that the sentence loop serves; others go token by token.
SENTENCE_MODES = ("greedy_search", "sample")


def serve(
    model: str, host: str = "127.0.0.1", port: int = 8000, device: str = "auto", dtype: str | None = "auto"
) -> None:
    """Serves one model until interrupted; it is loaded before the first request.

    Clients call a folder by its last name, so the server works in the folder above it.

    Args:
        model: Path or name of a causal language model; a name may end in `@revision`.
        host: The address to listen on.
        port: The port to listen on.
        device: As in `device_map`: `auto`, `cpu`, `cuda:0` or a number.
        dtype: The weights' type, such as `bfloat16`; `auto` is the checkpoint's.

    Raises:
        ImportError: If the packages of transformers' server are missing.
        ValueError: If the folder's name holds an `@`, or a setting is unknown to the server.
        OSError: If there is no such model.
    """
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import ModelManager

    folder = Path(model).resolve()
    if folder.is_dir():
        if "@" in folder.name:
            raise ValueError(f"`model` is the folder {model}: the server reads a revision after the @. Rename it.")
        os.chdir(folder.parent)
        model = folder.name
    name, _, revision = model.partition("@")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except OSError as error:
        raise OSError(f"{model} has no tokenizer that could be read. {error}") from error

    # The server looks a class up in transformers' namespace, by the name that the checkpoint's config gives.
    transformers.SllmForCausalLM = ServedSllm  # type: ignore[attr-defined]
    # It would list the Hub's cache, of which it serves nothing: it is pinned to this model.
    served = {"id": model, "object": "model", "created": 0, "owned_by": "hf_sllm"}
    ModelManager.get_gen_models = staticmethod(lambda cache_dir=None: [served])  # type: ignore[assignment, method-assign]
    Serve(
        force_model=model,
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        chat_template_kwargs=None if tokenizer.chat_template else json.dumps({"chat_template": PLAIN_CHAT_TEMPLATE}),
    )


class ServedSllm(SllmForCausalLM):
    """An SLLM as the server calls it: it goes on with a text that begins as in training, sentence by sentence."""

    def generate(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        generation_config: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `SllmForCausalLM.generate` for one row. A text that begins with no special token gets the start token.

        Returns:
            The ids given and written `(1, length)`, without a start token that was not given.
        """
        given = input_ids[0]
        whole = given.numel() > 0 and int(given[0]) in tokenizer.all_special_ids
        start = given.new_full((0 if whole else 1,), start_token_id(tokenizer))
        input_ids = torch.cat([start, given])[None]
        # A request that names a temperature asks for it, of a model whose default is greedy too.
        if generation_config.temperature not in (None, 0, self.generation_config.temperature):
            generation_config.do_sample = True
        if (
            generation_config.use_cache is not False
            and generation_config.get_generation_mode().value in SENTENCE_MODES
        ):
            kwargs["max_sentences"] = math.inf
        written = super().generate(
            input_ids,
            generation_config,
            attention_mask=torch.ones_like(input_ids),
            tokenizer=tokenizer,
            **kwargs,
        )
        return written[:, len(start) :]

"""transformers' own OpenAI-compatible server, to which SLLMs are known.

What it adds: the texts of all requests are written in one batch, sentence by sentence (`scheduler`); several prompts
and choices, log-probabilities and embeddings (`handlers`); the start token before a plain prompt, and a chat template
where the tokenizer has none. Routes and the form of requests and answers are the server's.
"""

import os
from pathlib import Path

import transformers
from transformers import AutoTokenizer

# What the turns of a chat are to a model that was never taught to chat: the text to go on with, a line for each.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or eos_token }}"
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    dtype: str | None = "auto",
    batch_size: int = 32,
) -> None:
    """Serves one model until interrupted; it is loaded before the first request.

    Clients call a folder by its last name, so the server works in the folder above it.

    Args:
        model: Path or name of a causal language model; a name may end in `@revision`.
        host: The address to listen on.
        port: The port to listen on.
        device: As in `device_map`: `auto`, `cpu`, `cuda:0` or a number.
        dtype: The weights' type, such as `bfloat16`; `auto` is the checkpoint's.
        batch_size: Texts that are written at a time; the others wait for a place. A model that is no SLLM writes one
            at a time.

    Raises:
        ImportError: If the packages of transformers' server are missing.
        ValueError: If the folder's name holds an `@`, `batch_size` is below 1, or a setting is unknown to the server.
        OSError: If there is no such model.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}: it must be at least 1.")
    try:
        import uvicorn

        from .app import build_app
    except ImportError as error:
        raise ImportError('serving needs more packages: pip install "hf-sllm[serve]"') from error

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
    transformers.utils.logging.set_verbosity_warning()
    chat = {} if tokenizer.chat_template else {"chat_template": PLAIN_CHAT_TEMPLATE}
    uvicorn.run(build_app(model, device, dtype, batch_size, chat), host=host, port=port, log_level="info")

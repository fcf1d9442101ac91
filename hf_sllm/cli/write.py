"""Commands that write texts, and serve what writes them."""

import sys
from typing import Annotated

import typer

from hf_sllm.embedded import embedded_checkpoint

from .common import app, errors, load_sllm, told_plainly


@app.command()
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the text begins with; it may be empty. By default what a pipe brings.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Path or name of an SLLM; by default the embedded one.")] = None,
    max_sentences: Annotated[int, typer.Option(min=1, help="Write at most so many sentences.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Write at most so many tokens.")] = 400,
    temperature: Annotated[float | None, typer.Option(help="Above 0; lower is more predictable.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Sample from the likeliest so much.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the likeliest so many tokens.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the sampling; by default a new one each time.")] = None,
) -> None:
    """Write a text, sentence by sentence."""
    if greedy and (temperature, top_p, top_k) != (None, None, None):
        raise typer.BadParameter("--greedy takes no --temperature, --top-p or --top-k.")
    if temperature is not None and temperature <= 0:
        raise typer.BadParameter("--temperature must be above 0; for the likeliest text there is --greedy.")
    with told_plainly():
        import torch
        from transformers import set_seed
        from transformers.utils import logging

        from hf_sllm.data import start_token_id
        from hf_sllm.streaming import SentenceStreamer

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        language_model, tokenizer = load_sllm(model or embedded_checkpoint())
        seed = torch.seed() % 2**31 if seed is None else seed
        set_seed(seed)
        given = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        sampling = {name: value for name, value in given.items() if value is not None}
        text = read_pipe() if prompt is None else prompt
        ids = [start_token_id(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]
        streamer = SentenceStreamer(tokenizer, lambda text: typer.echo(text, nl=False))
        input_ids = torch.tensor([ids])
        language_model.generate(  # type: ignore[operator]
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_sentences=max_sentences,
            max_new_tokens=max_new_tokens,
            do_sample=not greedy,
            streamer=streamer,
            **sampling,
        )
    typer.echo()
    errors.print(
        f"{streamer.sentences} sentences, {streamer.tokens} tokens, "
        f"{streamer.tokens / streamer.seconds:.0f} tokens per second" + ("" if greedy else f", seed {seed}"),
        style="dim",
        highlight=False,
    )


def read_pipe() -> str:
    """What is piped into the command, without the line break that ends it; empty at a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    return sys.stdin.read().removesuffix("\n")


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(help="Path or name of a model; by default the embedded one.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, or one such as `cuda:0`.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the weights, such as `bfloat16`; `auto` is the checkpoint's.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that are written at a time.")] = 32,
) -> None:
    """Serve a model to OpenAI clients: transformers' own server, all texts in one batch, sentence by sentence."""
    with told_plainly():
        from hf_sllm.serving.run import serve as run

        run(model or embedded_checkpoint(), host, port, device, dtype, batch_size)

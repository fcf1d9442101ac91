"""Commands of the text codec: texts to points and back, and files compressed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_sllm.embedded import embedded_checkpoint

from .common import app, told_plainly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_sllm.modeling.modeling_text_codec import TextCodecModel

ModelOption = Annotated[
    str | None, typer.Option("--model", help="A causal language model or a text codec; by default the embedded one.")
]
Temperature = Annotated[float, typer.Option(min=0.001, help="The logits are divided by it; both ways the same.")]
EndToken = Annotated[int | None, typer.Option(help="The token that ends a text; by default the model's eos.")]


def load_codec(
    name: str | None, temperature: float = 1.0, end_token_id: int | None = None
) -> "tuple[TextCodecModel, PreTrainedTokenizerBase]":
    """A codec and its tokenizer; of a language model one is made."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    from hf_sllm.modeling.modeling_text_codec import TextCodecModel

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = name or embedded_checkpoint()
    if AutoConfig.from_pretrained(name).model_type == "text_codec":
        model = TextCodecModel.from_pretrained(name)
    else:
        model = TextCodecModel.from_language_model(name, temperature=temperature, end_token_id=end_token_id)
    return model, AutoTokenizer.from_pretrained(name)


@app.command("encode-text")
def encode_text(
    text: Annotated[str | None, typer.Argument(help="The text; by default all that a pipe brings.")] = None,
    model: ModelOption = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Coordinates of the point.")] = None,
) -> None:
    """Print the point of a text: the digits of each coordinate, in hexadecimal."""
    with told_plainly():
        from hf_sllm.compression import point_to_json

        codec, tokenizer = load_codec(model)
        given = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if text is None else text
        typer.echo(point_to_json(codec.encode([given], tokenizer, dimensions)[0]))


@app.command("decode-text")
def decode_text(
    point: Annotated[str | None, typer.Argument(help="What encode-text printed; by default from a pipe.")] = None,
    model: ModelOption = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Cut off after so many tokens.")] = None,
) -> None:
    """Print the text of a point, and nothing else."""
    with told_plainly():
        from hf_sllm.compression import point_from_json

        codec, tokenizer = load_codec(model)
        found = point_from_json(sys.stdin.read() if point is None else point)
        text = codec.decode([found], tokenizer, max_length)[0]
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()


@app.command()
def compress(
    file: Annotated[Path, typer.Argument(help="The file to read.")],
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    model: ModelOption = None,
    temperature: Temperature = 1.0,
    end_token_id: EndToken = None,
) -> None:
    """Compress a file without loss, by a language model: small and slow."""
    with told_plainly():
        from hf_sllm.compression import compress as run

        output.write_bytes(run(file.read_bytes(), *load_codec(model, temperature, end_token_id)))


@app.command()
def decompress(
    file: Annotated[Path, typer.Argument(help="What compress wrote.")],
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    model: ModelOption = None,
    temperature: Temperature = 1.0,
    end_token_id: EndToken = None,
) -> None:
    """Write the file that was compressed."""
    with told_plainly():
        from hf_sllm.compression import decompress as run

        output.write_bytes(run(file.read_bytes(), *load_codec(model, temperature, end_token_id)))


@app.command("compare-compression")
def compare_compression(
    data: Annotated[str, typer.Argument(help="Texts, as `hf-sllm eval` reads them.")],
    model: ModelOption = None,
    temperature: Temperature = 1.0,
    end_token_id: EndToken = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many texts.")] = None,
) -> None:
    """Print the bytes of texts by the codec, gzip, xz, zstd and a unigram model, and the codec's cost."""
    with told_plainly():
        import json

        from hf_sllm.compression import compare
        from hf_sllm.data import load_documents

        texts = list(load_documents(data, limit=limit)["text"])
        typer.echo(json.dumps(compare(texts, *load_codec(model, temperature, end_token_id)), indent=2))

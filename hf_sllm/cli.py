"""The `hf-sllm` command. What is heavy is imported by the command that needs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_sllm.data import SentenceStatistics

app = typer.Typer(
    help="A sentence level for any Hugging Face causal language model.", no_args_is_help=True, add_completion=False
)
data_app = typer.Typer(help="Look at data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(help="Measure speed, beside the bare backbone in the same run.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
errors = Console(stderr=True)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the text begins with; it may be empty.")] = "",
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
        ids = [start_token_id(tokenizer), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with the package.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    output_dir: Annotated[Path | None, typer.Option(help="Where to save; by default what the recipe says.")] = None,
) -> None:
    """Train an SLLM by a recipe, and measure it beside its baseline."""
    with told_plainly():
        from hf_sllm.training import load_recipe
        from hf_sllm.training import train as run

        run(load_recipe(recipe, output_dir), resume=resume)


@app.command()
def ablate(
    file: Annotated[str, typer.Argument(help="A YAML file of variants, or the name of one of the package's.")],
    output_dir: Annotated[Path, typer.Option(help="Where to save; what is there already is not trained again.")],
) -> None:
    """Train variants of a recipe, one change at a time, and measure them beside one baseline."""
    with told_plainly():
        from hf_sllm.training.ablation import ablate as run

        run(file, output_dir)


@app.command("layers")
def choose_layers(
    backbone: Annotated[str, typer.Argument(help="Path or name of a causal language model.")],
    data: Annotated[list[str], typer.Option(help="A file of documents, or a dataset on the Hub; may be repeated.")],
    keep: Annotated[int, typer.Option(min=1, help="Go down to so many layers.")] = 2,
    texts: Annotated[int, typer.Option(min=1, help="How many pieces of text to read, spread over the documents.")] = 6,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 64,
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "train",
) -> None:
    """Find the layers that a decoder best begins with: leave out one after the other, always the least missed."""
    with told_plainly():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from hf_sllm.data import document_ids, load_documents, spread
        from hf_sllm.training.layers import choose_layers as choose

        model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
        documents = spread(load_documents(data, split), 4 * texts)
        rows = [
            row[:length]
            for row in document_ids([row["text"] for row in documents], AutoTokenizer.from_pretrained(backbone))
        ]
        rows = [row for row in rows if len(row) == length][:texts]
        if not rows:
            raise ValueError(f"no document of {data} has {length} tokens: lower `--length`.")
        choices = choose(model, torch.tensor(rows), keep)
    table = Table(title=f"{backbone}, {len(rows)} x {length} tokens")
    table.add_column("layers", justify="right")
    table.add_column("nats per token", justify="right")
    table.add_column("which: `decoder_layers` of a recipe")
    for choice in choices:
        table.add_row(str(len(choice.layers)), f"{choice.nats:.3f}", str(list(choice.layers)))
    Console().print(table)


@bench_app.command("training")
def bench_training(
    shapes: Annotated[str, typer.Argument(help="Shapes by name, or a model whose config is read.")] = "smollm2-135m",
    sentence_length: Annotated[int, typer.Option(min=2, help="Tokens of each sentence.")] = 16,
    decoder_layers: Annotated[int | None, typer.Option(min=1, help="By default as `from_backbone` has it.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 4,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each text.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each side that count.")] = 5,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = True,
) -> None:
    """Tokens trained on in a second, by an SLLM and its bare backbone in turn: all weights of each, random ones."""
    with told_plainly():
        import torch

        from hf_sllm.benchmark import make_pair, measure_training, random_text

        device = "cuda" if torch.cuda.is_available() else "cpu"
        backbone, sllm = make_pair(shapes, sentence_length, decoder_layers)
        token_ids = random_text(batch_size, length, sentence_length, backbone.config.vocab_size).to(device)
        speed = measure_training(backbone, sllm, token_ids, steps, bf16)
    title = f"{shapes}, {batch_size} x {length} tokens, sentences of {sentence_length}, {device}"
    table = Table(title=title)
    for name in ("", "tokens per second", "ratio", "parameters"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("backbone", f"{speed.backbone:,.0f}", "", f"{backbone.num_parameters():,}")
    layers = sllm.config.sentence_decoder_config.num_hidden_layers
    table.add_row(
        f"SLLM, decoder of {layers} layers", f"{speed.sllm:,.0f}", f"{speed.ratio:.2f}", f"{sllm.num_parameters():,}"
    )
    Console().print(table)


@bench_app.command("generation")
def bench_generation(
    shapes: Annotated[str, typer.Argument(help="Shapes by name, or a model whose config is read.")] = "smollm2-135m",
    context_lengths: Annotated[str, typer.Option(help="Tokens of the text read, with commas between.")] = "256,2048",
    batch_sizes: Annotated[str, typer.Option(help="Texts at a time, with commas between.")] = "1,8",
    sentence_length: Annotated[int, typer.Option(min=2, help="Tokens of each sentence, read or written.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=4, help="Tokens to write, two sentences at least.")] = 64,
    decoder_layers: Annotated[int | None, typer.Option(min=1, help="By default as `from_backbone` has it.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    shortlist: Annotated[
        int | None, typer.Option(min=1, help="The SLLM chooses each sentence's among so many.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also the backbone compiled, static cache.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="How many times each side is timed.")] = 5,
    output: Annotated[Path | None, typer.Option(help="A folder for bench.json and bench.png.")] = None,
) -> None:
    """Read a text and write on, by an SLLM and its bare backbone in turn: time, memory, and what memory allows."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.benchmark import Settings, benchmark_generation
        from hf_sllm.benchmark.plots import plot_benchmark
        from hf_sllm.benchmark.tables import print_benchmark

        logging.set_verbosity_error()
        settings = Settings(
            shapes,
            numbers(context_lengths),
            numbers(batch_sizes),
            sentence_length,
            new_tokens,
            decoder_layers,
            dtype,
            shortlist,
            compiled,
            runs,
        )
        keep = None if output is None else lambda found: found.save(output / "bench.json")
        found = benchmark_generation(settings, keep=keep)
        print_benchmark(found, Console())
        if output is not None:
            plot_benchmark(found, output / "bench.png")


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between.

    Raises:
        ValueError: If one of them is something else.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no list of whole numbers: write it as 256,2048.") from None


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Path or name of any causal language model, or of a sentence VAE.")],
    data: Annotated[list[str], typer.Option(help="A file of documents, or a dataset on the Hub; may be repeated.")],
    against: Annotated[str | None, typer.Option(help="The model to hold it against: its backbone, or any.")] = None,
    measures: Annotated[str | None, typer.Option(help="Some of them, with commas between; by default all.")] = None,
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "validation",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="So many documents only, spread over all.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=4, help="Cut documents into pieces of so many bytes.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Tokens read at once; by default all both can.")] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="New tokens of each further window; default: half.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    output: Annotated[Path | None, typer.Option(help="A folder for evaluation.json and evaluation.png.")] = None,
) -> None:
    """Measure a model and one to hold it against: bits per byte, use of context, writing, what is reconstructed."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.data import cut_documents, load_documents, spread
        from hf_sllm.evaluation.plots import plot_evaluation
        from hf_sllm.evaluation.report import evaluate as run
        from hf_sllm.evaluation.tables import print_evaluation

        logging.disable_progress_bar()
        documents = load_documents(data, split, text_column)
        if max_bytes is not None:
            documents = cut_documents(documents, max_bytes)
        found = run(
            model,
            spread(documents, limit),
            data,
            against,
            None if measures is None else [name.strip() for name in measures.split(",")],
            window,
            stride,
            batch_size,
            seed,
            keep=None if output is None else lambda found: found.save(output / "evaluation.json"),
        )
        print_evaluation(found, Console())
        if output is not None:
            plot_evaluation(found, output / "evaluation.png")
    if not any(side.figures for side in found.sides):
        raise typer.Exit(1)


@app.command("paper-check")
def paper_check(
    steps: Annotated[int, typer.Option(min=1, help="Of training, in each way.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and of the texts.")] = 0,
) -> None:
    """Show on random tokens that wrong masks score below the entropy, and right ones do not."""
    with told_plainly():
        from hf_sllm.evaluation.paper_check import paper_check as check

        rows = check(steps, seed)
    table = Table(title=f"Bits per token of independent uniform tokens, {steps} steps, seed {seed}")
    for name in ("", "bits per token", "entropy", "difference", "standard error", "below the entropy"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.bits_per_token:.4f}",
            f"{row.entropy:.4f}",
            f"{row.bits_per_token - row.entropy:+.4f}",
            f"{row.standard_error:.4f}",
            "yes" if row.below else "no",
            style="red" if row.below else None,
        )
    Console().print(table)


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="Folder of an SLLM or a sentence VAE, or its name on the Hub.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    evaluation: Annotated[Path | None, typer.Option(help="evaluation.json of `hf-sllm eval --output`.")] = None,
    about: Annotated[Path | None, typer.Option(help="A YAML file of what no file tells: data, licences, use.")] = None,
    repo: Annotated[str | None, typer.Option(help="Its name on the Hub, if it is to lie there with its code.")] = None,
) -> None:
    """Write a model card from what was measured."""
    with told_plainly():
        from hf_sllm.hub import load_about, make_card

        text = make_card(
            model, evaluation, None if about is None else load_about(about), name=repo, is_on_hub=repo is not None
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")


@app.command()
def push(
    model: Annotated[Path, typer.Argument(help="Folder of an SLLM or a sentence VAE.")],
    repo: Annotated[str, typer.Argument(help="Its name on the Hub: owner/name.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go and what stays.")] = False,
    private: Annotated[bool | None, typer.Option(help="If the repository is made: for its owner only.")] = None,
    revision: Annotated[str | None, typer.Option(help="The branch; made if there is none.")] = None,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Even a card on the Hub that was written by hand.")
    ] = False,
) -> None:
    """Upload weights, code, tokenizer, card and results to the Hub, in one commit."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.hub import plan
        from hf_sllm.hub import push as run

        logging.disable_progress_bar()
        planned = plan(model, repo)
        if not dry_run:
            done = run(model, repo, private=private, revision=revision, overwrite_card=overwrite_card)
    for title, sizes in (("goes" if dry_run else "went", planned.sizes), ("stays", planned.stays)):
        table = Table(title=f"{title}: {len(sizes)}, {sum(sizes.values()):,} bytes", title_justify="left")
        table.add_column("")
        table.add_column("bytes", justify="right")
        for name, size in sizes.items():
            table.add_row(escape(name), f"{size:,}")
        Console().print(table)
    if not dry_run:
        Console().print(done.commit_url, highlight=False, soft_wrap=True)


@data_app.command()
def stats(
    source: Annotated[list[str], typer.Argument(help="Files of documents, or datasets on the Hub (name:config).")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Path or name of a tokenizer; by default the embedded checkpoint's.")
    ] = None,
    unit: Annotated[str, typer.Option(help="`sentence` or `clause`.")] = "sentence",
    max_sentence_length: Annotated[int, typer.Option(min=1, help="A sentence is cut at so many tokens.")] = 64,
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "train",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many documents only.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read on the way, keeping nothing on disk.")] = False,
    output: Annotated[Path | None, typer.Option(help="A folder for sentences.json and sentences.png.")] = None,
) -> None:
    """Measure how long sentences are, and what a maximum length cuts."""
    with told_plainly():
        import dataclasses
        import json

        from transformers import AutoTokenizer

        from hf_sllm.data import load_documents, plot_sentence_lengths, sentence_rule, sentence_statistics

        name = tokenizer or embedded_checkpoint()
        used = AutoTokenizer.from_pretrained(name)
        rule = sentence_rule(used, unit, max_sentence_length)
        documents = load_documents(source, split, text_column, limit, streaming=streaming)
        found = sentence_statistics(documents, used, rule)
        print_statistics(found)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            about = {"source": source, "limit": limit, "tokenizer": name, "unit": unit, **dataclasses.asdict(found)}
            (output / "sentences.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            plot_sentence_lengths(found, output / "sentences.png")


def print_statistics(found: "SentenceStatistics") -> None:
    """Two tables: how long the sentences are, and what each maximum length cuts."""
    console = Console()
    table = Table(
        title=f"{found.documents:,} documents, {found.sentences:,} sentences",
        caption=f"{found.single_tokens:,} sentences are a single token",
    )
    for name in ("", "in all", "mean", "median", "90 %", "99 %", "longest"):
        table.add_column(name, justify="right" if name else "left")
    for unit, total, lengths in (
        ("tokens", found.tokens, found.tokens_per_sentence),
        ("bytes", found.bytes, found.bytes_per_sentence),
    ):
        figures = (lengths.median, lengths.p90, lengths.p99, lengths.max)
        table.add_row(unit, f"{total:,}", f"{lengths.mean:.1f}", *(f"{figure:,}" for figure in figures))
    console.print(table)

    table = Table(title="What a maximum sentence length does")
    for name in ("tokens at most", "sentences", "tokens each", "sentences cut", "tokens in these"):
        table.add_column(name, justify="right")
    for cut in found.cuts:
        table.add_row(
            str(cut.max_sentence_length),
            f"{cut.sentences:,}",
            f"{cut.tokens_per_sentence:.1f}",
            f"{cut.cut_sentences:.1%}",
            f"{cut.cut_tokens:.1%}",
            style="bold" if cut.max_sentence_length == found.max_sentence_length else None,
        )
    console.print(table)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Path or name of an SLLM or of a sentence VAE.")],
    data: Annotated[str, typer.Option(help="A file of documents, or a dataset on the Hub.")],
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "validation",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int, typer.Option(min=1, help="The first so many sentences only.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for latents.json and latents.png.")] = None,
) -> None:
    """Show how healthy the latents are: what they hold, what of it is used, and how much noise they bear."""
    with told_plainly():
        from hf_sllm.data import load_documents
        from hf_sllm.inspection import inspect_latents, plot_latents, print_latents

        inspected, tokenizer = load_with_latents(model)
        health = inspect_latents(
            inspected, tokenizer, load_documents(data, split, text_column), limit, batch_size, seed
        )
        print_latents(health, model, Console())
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            health.save(output / "latents.json")
            plot_latents(health, output / "latents.png", model)


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(help="Path or name of a model; by default the embedded one.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, or one such as `cuda:0`.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the weights, such as `bfloat16`; `auto` is the checkpoint's.")
    ] = "auto",
) -> None:
    """Serve a model to OpenAI clients: transformers' own server, sentence by sentence."""
    with told_plainly():
        from hf_sllm.serving import serve as run

        run(model or embedded_checkpoint(), host, port, device, dtype)


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    no_args_is_help=True,
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness, to which SLLMs and our tasks are known: sllm_cloze, sllm_gsm8k, sllm_bits_per_byte.

    All arguments go to its own command; `hf-sllm lm-eval -- run --help` lists them.
    """
    with told_plainly():
        from hf_sllm.harness import run

        run(context.args)


def load_with_latents(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model that has sentence latents, in float32, and its tokenizer.

    Raises:
        ValueError: If it is a model of another kind.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    from hf_sllm.inspection.latents import check_model

    config = AutoConfig.from_pretrained(name)
    check_model(config.model_type)
    auto_class = AutoModelForCausalLM if config.model_type == "sllm" else AutoModel
    model = auto_class.from_pretrained(name, config=config, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return model, AutoTokenizer.from_pretrained(name)


def load_sllm(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """An SLLM and its tokenizer.

    Raises:
        ValueError: If it is a model of another kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(name)
    if config.model_type != "sllm":
        raise ValueError(
            f"{name} is a {config.model_type!r} model, and this command writes with an SLLM: wrap it and train "
            "it with `hf-sllm train`."
        )
    return AutoModelForCausalLM.from_pretrained(name, config=config).eval(), AutoTokenizer.from_pretrained(name)


def embedded_checkpoint() -> str:
    """Where the checkpoint that comes with the package lies.

    Raises:
        ValueError: If this installation has none.
    """
    folder = files("hf_sllm") / "checkpoints" / "sllm-stories"
    if not (folder / "config.json").is_file():
        raise ValueError("this installation has no embedded checkpoint: give one by `--model`.")
    return str(folder)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turns the errors that a user can cause into a message and an exit status."""
    # A config's own checks raise this, with the ValueError inside.
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, StrictDataclassError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()

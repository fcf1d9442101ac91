"""One run measures both sides on the same text, loses nothing that it measured, and says what it could not."""

import io
import json
import math

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_sllm import SllmForCausalLM
from hf_sllm.data import train_tokenizer
from hf_sllm.evaluation import Evaluation, bits_per_byte, evaluate
from hf_sllm.evaluation.plots import plot_evaluation
from hf_sllm.evaluation.run import LOSS_OF, MEASURES
from hf_sllm.evaluation.tables import print_evaluation

TEXTS = ["The owl said no. The dog saw it. Yes. It was late.", "The owl saw the dog. No. The dog ran. It was."]
ODD_TEXTS = {
    "several kinds": [
        "猫坐在垫子上。狗呢？我不知道！",
        "القطة على السجادة. أين الكلب؟",
        "🐈‍⬛ and 👩‍👩‍👧‍👦! 🇫🇷.",
        "def f(x):\n\treturn x['a.b'] if x else {}  # done.\n",
        "a\0b\0\0. \0",
        "one line and no end " * 60,
    ],
    "one character": ["."],
}
DOCUMENTS = Dataset.from_dict({"text": TEXTS, "bits": [8.0 * len(text) for text in TEXTS]})


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A backbone and its SLLM, saved."""
    tokenizer = train_tokenizer(TEXTS, 280)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    backbone = AutoModelForCausalLM.from_config(config)
    folder = tmp_path_factory.mktemp("models")
    backbone.save_pretrained(folder / "backbone")
    for name, weight in (("sllm", 0.0), ("listing", 1.0)):
        SllmForCausalLM.from_backbone(
            backbone,
            tokenizer,
            encoder_layers=1,
            decoder_layers=1,
            bag_of_words_weight=weight,
            next_latent_weight=weight,
        ).save_pretrained(folder / name)
    for name in ("backbone", "sllm", "listing"):
        tokenizer.save_pretrained(folder / name)
    return str(folder / "sllm"), str(folder / "backbone")


def test_the_other_side_may_be_an_adapter(names, tmp_path):
    """Of a backbone that was adapted as its SLLM was."""
    peft = pytest.importorskip("peft")
    backbone = AutoModelForCausalLM.from_pretrained(names[1])
    adapted = peft.get_peft_model(backbone, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(names[1]).save_pretrained(tmp_path)
    found = [
        evaluate(names[0], DOCUMENTS, [], against, ["likelihood"], progress=False).sides[1]
        for against in (str(tmp_path), names[1])
    ]
    assert found[0].failures == {}
    assert found[0].figures["likelihood"].total.bits != found[1].figures["likelihood"].total.bits


def run(names, **kwargs):
    return evaluate(names[0], DOCUMENTS, ["texts.jsonl"], against=names[1], progress=False, **kwargs)


@pytest.fixture(scope="module")
def everything(names):
    return run(names)


def test_both_sides_are_measured_by_all_that_fits_and_on_the_same(everything, names):
    for side in everything.sides:
        assert side.figures.keys() | side.failures.keys() == MEASURES.keys() - set(LOSS_OF)
        assert side.failures.keys() <= {"needle", "context"}  # so short a text has no fillers
    first, second = (side.figures["likelihood"] for side in everything.sides)
    assert first.total.tokens == second.total.tokens and first.stopping.closes == second.stopping.closes
    for name, side in zip(names, everything.sides, strict=True):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
        expected = bits_per_byte(model, tokenizer, DOCUMENTS, progress=False).bits_per_byte
        assert side.figures["likelihood"].total.bits_per_byte == pytest.approx(expected, rel=1e-5)
    assert everything.floor == 8.0


def test_json_tables_figure_and_card_say_the_same(everything, tmp_path):
    bits = everything.sides[0].figures["likelihood"].total.bits_per_byte
    everything.save(tmp_path / "evaluation.json")
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["sides"][0]["figures"]["likelihood"]["total"]["bits_per_byte"] == bits

    console = Console(record=True, width=160, file=io.StringIO())
    print_evaluation(everything, console)
    text = console.export_text()
    other = everything.sides[1].figures["likelihood"].total.bits_per_byte
    assert f"{bits:.4f}" in text and f"{bits / other:.3f}" in text and "8.0000" in text

    plot_evaluation(everything, tmp_path / "evaluation.png")
    assert (tmp_path / "evaluation.png").stat().st_size > 10_000

    data = ModelCardData(model_name="sllm", eval_results=everything.eval_results())
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n")
    assert card.data.eval_results[0].metric_value == pytest.approx(bits, abs=1e-6)


def test_what_was_measured_before_an_interruption_is_kept(names, monkeypatch, tmp_path):
    def interrupted(model, given):
        raise KeyboardInterrupt

    monkeypatch.setitem(MEASURES, "context", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(names, measures=["likelihood", "context"], keep=lambda found: found.save(tmp_path / "kept.json"))
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [list(side["figures"]) for side in kept["sides"]] == [["likelihood"], ["likelihood"]]


def test_a_measure_that_cannot_be_taken_says_why_and_the_others_go_on(names):
    found = run(names, measures=["reconstruction", "likelihood"])
    assert all("likelihood" in side.figures for side in found.sides)
    assert "reconstruction_weight" in found.sides[0].failures["reconstruction"]


@pytest.mark.parametrize("texts", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_every_measure_of_odd_documents_is_a_figure_or_a_reason(texts, names, tmp_path):
    documents = Dataset.from_dict({"text": texts})
    found = evaluate(names[0][: -len("sllm")] + "listing", documents, ["odd.jsonl"], progress=False)
    (side,) = found.sides
    assert side.figures.keys() | side.failures.keys() >= {"context", "needle", "writing", "brier", "shortlist"}
    total = side.figures["likelihood"].total
    assert total.bytes == found.bytes == len("".join(texts).encode()) and 0 < total.bits < float("inf")
    assert all(side.failures.values()), "a reason is empty"
    found.save(tmp_path / "evaluation.json")
    print_evaluation(found, Console(file=io.StringIO()))


def test_a_model_that_learned_shortlists_and_to_look_ahead_is_measured_by_them_too(names, tmp_path):
    found = evaluate(names[0][: -len("sllm")] + "listing", DOCUMENTS, ["texts.jsonl"], progress=False)
    ways = {lists.way: lists for lists in found.sides[0].figures["shortlist"].lists}
    assert ways.keys() == {"best", "token", "sentence"} and 0 < ways["sentence"].coverage[0] <= 1
    cost = found.sides[0].figures["parallel"]
    # The sentences after the third: of the first text one, of the second one, and their ends.
    assert (cost.sentences, cost.bytes) == (4, len(" It was late.") + len(" It was."))
    bits = cost.tokens / cost.bytes / math.log(2)
    assert cost.bits_per_byte == pytest.approx([nats * bits for nats in cost.nats])
    found.save(tmp_path / "evaluation.json")
    console = Console(record=True, width=160, file=io.StringIO())
    print_evaluation(Evaluation.load(tmp_path / "evaluation.json"), console)
    text = console.export_text()
    assert "a list for each sentence, 128: the text's tokens" in text and "bits per byte, 3 sentences ahead" in text


def test_nothing_to_measure_and_unknown_measures_are_refused(names):
    with pytest.raises(ValueError, match="`measures` has speed: there are likelihood"):
        run(names, measures=["speed"])
    with pytest.raises(ValueError, match="`documents` is empty"):
        evaluate(names[0], DOCUMENTS.select([]), ["texts.jsonl"])

"""What treats the model as any causal language model: pipelines, plain Trainer, copies of it."""

import copy
import pickle

import pytest
import torch
from models import random_ids, tiny_sllm
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline


def word_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, 61)}}
    core = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def test_a_pipeline_writes_what_generate_writes():
    model, tokenizer = tiny_sllm(), word_tokenizer()
    prompts = ["w20 w21 w22", "w30 w5 w31 w32 w33"]
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    texts = [
        result[0]["generated_text"] for result in writer(prompts, max_new_tokens=12, do_sample=False, batch_size=1)
    ]
    for prompt, text in zip(prompts, texts, strict=True):
        token_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = model.generate(token_ids, max_new_tokens=12, do_sample=False)
        # The pipeline decodes the prompt and what follows apart, so a space may be missing between them.
        expected = tokenizer.decode(written[0], skip_special_tokens=True)
        assert text.replace(" ", "") == expected.replace(" ", "")


@pytest.mark.parametrize("steps", [1, 2])
def test_plain_trainer_trains_it_and_accumulation_changes_nothing(tmp_path, steps):
    """Texts of different lengths: only with `num_items_in_batch` are halves of a batch the whole batch."""
    rows = [random_ids(1, length, seed=length)[0] for length in (9, 30, 12, 25)]
    data = [{"input_ids": row, "labels": row} for row in rows]

    def collate(examples):
        longest = max(len(example["labels"]) for example in examples)
        pad = lambda row, value: torch.nn.functional.pad(row, (0, longest - len(row)), value=value)  # noqa: E731
        return {
            "input_ids": torch.stack([pad(example["input_ids"], 0) for example in examples]),
            "attention_mask": torch.stack([pad(torch.ones_like(example["labels"]), 0) for example in examples]),
            "labels": torch.stack([pad(example["labels"], -100) for example in examples]),
        }

    def train(accumulation: int):
        model = tiny_sllm()
        arguments = TrainingArguments(
            output_dir=tmp_path / str(accumulation),
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
            learning_rate=1e-2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
        )
        trainer = Trainer(model, arguments, data_collator=collate, train_dataset=data)
        assert trainer.model_accepts_loss_kwargs
        trainer.train()
        return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    model, losses = train(steps)
    whole, expected = train(1)
    assert [float(loss) for loss in losses] == pytest.approx([float(loss) for loss in expected], rel=1e-3)
    assert float(losses[-1]) < float(losses[0])
    torch.testing.assert_close(model.lm_head.weight, whole.lm_head.weight, rtol=1e-3, atol=1e-4)


def test_trainer_evaluates_it(tmp_path):
    """The loss in evaluation is the cross-entropy, and what is predicted is logits."""
    model, token_ids = tiny_sllm(stop_head=True), random_ids(4, 20)
    data = [{"input_ids": row, "labels": row} for row in token_ids]
    arguments = TrainingArguments(output_dir=tmp_path, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(model, arguments, eval_dataset=data)
    with torch.no_grad():
        expected = model(token_ids, labels=token_ids)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    predicted = trainer.predict(data)
    assert predicted.predictions == pytest.approx(expected.logits.numpy(), abs=1e-4)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_computes_the_same(duplicate):
    model, token_ids = tiny_sllm(), random_ids(2, 20)
    assert torch.equal(duplicate(model)(token_ids).logits, model(token_ids).logits)

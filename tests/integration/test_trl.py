"""TRL's SFTTrainer trains an SLLM as it does any causal language model."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_ids, tiny_sllm
from test_ecosystem import word_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

pytest.importorskip("trl", reason='needs trl: pip install -e ".[trl]"')

from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from trl import SFTConfig, SFTTrainer

SENTENCES = ["w20 w21 w22 w5", "w30 w31 w6", "w40 w41 w42 w43 w7", "w50 w51 w8"]
ROWS = {
    "text": [{"text": f"{first} {second}"} for first in SENTENCES for second in SENTENCES],
    "prompt": [{"prompt": first, "completion": f" {second}"} for first in SENTENCES for second in SENTENCES],
}


def sft_trainer(
    model: PreTrainedModel, kind: str, folder: Path, peft_config: LoraConfig | None = None, **options: Any
) -> SFTTrainer:
    arguments = SFTConfig(
        folder, max_steps=12, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", **options,
    )  # fmt: skip
    rows = Dataset.from_list(ROWS[kind])
    return SFTTrainer(model, arguments, train_dataset=rows, processing_class=word_tokenizer(), peft_config=peft_config)


@pytest.mark.parametrize("kind, adapted", [("text", False), ("prompt", True)])
def test_sft_lowers_the_loss_and_what_it_saves_loads(kind, adapted, tmp_path):
    model, token_ids = tiny_sllm(), random_ids(2, 20)
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = sft_trainer(
        model,
        kind,
        tmp_path / "trained",
        LoraConfig(target_modules=r".*\.(q_proj|v_proj|up_proj)", task_type="CAUSAL_LM") if adapted else None,
    )
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.95 * losses[0]
    trainer.save_model()
    loaded = (AutoPeftModelForCausalLM if adapted else AutoModelForCausalLM).from_pretrained(tmp_path / "trained")
    with torch.no_grad():
        found, expected = loaded.eval()(token_ids).logits, trainer.model.eval()(token_ids).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"stop_head": True, "reconstruction_weight": 0.5}])
def test_its_loss_is_the_next_sentence_term_over_the_completions_alone(options, tmp_path):
    """It multiplies states and LM head by itself, so that no other term of the model's own loss is in it."""
    model = tiny_sllm(**options)
    trainer = sft_trainer(model, "prompt", tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    scored = {tuple(row[row != -100].tolist()) for row in batch["labels"]}
    assert scored <= {(*(int(word[1:]) for word in sentence.split()), 2) for sentence in SENTENCES}
    found = trainer.compute_loss(model.train(), dict(batch))
    losses = model(**batch).losses
    torch.testing.assert_close(found, losses["next_sentence"])
    assert losses.keys() == {"next_sentence", *({"reconstruction", "stop"} if options else ())}


PACKED = {"packing": True, "max_length": 32, "pad_to_multiple_of": 16}


@pytest.mark.parametrize("options", [PACKED, {"padding_free": True, "max_length": None}])
def test_texts_packed_in_one_row_are_trained_on_as_in_rows_of_their_own(options, tmp_path):
    model = tiny_sllm()
    trainer = sft_trainer(model, "text", tmp_path, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    bounds = batch["cu_seq_lens_q"].tolist()
    assert len(batch["input_ids"]) == 1 and len(bounds) > 3
    found = trainer.compute_loss(model, dict(batch))
    texts = [batch["input_ids"][:, first:end] for first, end in pairwise(bounds)]
    alone = sum(model(text, labels=text, num_items_in_batch=1).loss for text in texts)
    torch.testing.assert_close(found, alone / (bounds[-1] - len(texts)), rtol=1e-5, atol=1e-5)
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.95 * losses[0]

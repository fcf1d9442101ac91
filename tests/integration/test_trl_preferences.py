"""TRL's DPOTrainer and GRPOTrainer train an SLLM as they do any causal language model."""

import pytest
from models import tiny_sllm
from test_ecosystem import word_tokenizer
from transformers import AutoModelForCausalLM

pytest.importorskip("trl", reason='needs trl: pip install -e ".[trl]"')

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

PROMPTS = ["w20 w21 w22 w5", "w30 w31 w6", "w40 w41 w42 w43 w7", "w50 w51 w8"] * 4
COMMON = {
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}


def logged(trainer, name: str) -> list[float]:
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def test_dpo_learns_what_is_chosen(tmp_path):
    rows = [{"prompt": prompt, "chosen": " w11 w12 w5", "rejected": " w13 w14 w6"} for prompt in PROMPTS]
    arguments = DPOConfig(tmp_path, max_steps=8, learning_rate=3e-3, **COMMON)
    tiny_sllm().save_pretrained(tmp_path / "base")  # the reference is read from where the model was
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = DPOTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=word_tokenizer()
    )
    trainer.train()
    losses, margins = logged(trainer, "loss"), logged(trainer, "rewards/margins")
    assert losses[0] == pytest.approx(0.693, abs=0.01)  # at first it prefers nothing
    assert losses[-1] < 0.5 * losses[0] and margins[-1] > 0.5


def test_grpo_writes_more_of_what_is_rewarded(tmp_path):
    """Completions are written by `generate`, a group for each prompt, and judged by their words."""

    def reward(completions: list[str], **_: object) -> list[float]:
        return [sum(word in ("w20", "w21", "w22", "w23") for word in text.split()) / 8 for text in completions]

    arguments = GRPOConfig(
        tmp_path, max_steps=25, learning_rate=1e-2, num_generations=4, max_completion_length=8, seed=0, **COMMON
    )
    trainer = GRPOTrainer(
        tiny_sllm(),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=word_tokenizer(),
    )
    trainer.train()
    rewards = logged(trainer, "reward")
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5

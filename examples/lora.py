"""Teaches the embedded checkpoint a few new texts by a LoRA adapter, saves the adapter, reloads and merges it.

python examples/lora.py
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

from hf_sllm.data import BlockCollator, load_documents, make_blocks
from hf_sllm.embedded import embedded_checkpoint
from hf_sllm.evaluation import bits_per_byte

set_seed(0)
checkpoint = embedded_checkpoint()
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
base = AutoModelForCausalLM.from_pretrained(checkpoint)
documents = load_documents(Path(__file__).parents[1] / "tests" / "data" / "tiny.jsonl")
bits_before = bits_per_byte(base, tokenizer, documents, progress=False).bits_per_byte

# Encoder, backbone and decoder call their projections by the same names: these adapt all three.
model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
model.print_trainable_parameters()

trainer = Trainer(
    model,
    TrainingArguments(
        "runs/lora",
        max_steps=20,
        learning_rate=5e-3,
        per_device_train_batch_size=4,
        logging_steps=5,
        save_strategy="no",
        label_names=["labels"],
        disable_tqdm=True,
    ),
    train_dataset=make_blocks(documents, tokenizer, base.config, block_size=128),
    data_collator=BlockCollator(tokenizer.eos_token_id),
)
trainer.train()
bits_after = bits_per_byte(model.eval(), tokenizer, documents, progress=False).bits_per_byte
print(f"bits per byte of the texts trained on: {bits_before:.3f} before, {bits_after:.3f} after")

# What is saved is the adapter alone; it goes onto its base again, or into it.
model.save_pretrained("runs/lora")
adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), "runs/lora").eval()
inputs = tokenizer("<s>The cat sat by", return_tensors="pt")
with torch.no_grad():
    logits = adapted(**inputs).logits
    merged = adapted.merge_and_unload()
    difference = (merged(**inputs).logits - logits).abs().max().item()
print(f"{type(merged).__name__} again, whose logits differ by at most {difference:.1e}")
written = merged.generate(**inputs, max_sentences=2)
print(tokenizer.decode(written[0], skip_special_tokens=True))

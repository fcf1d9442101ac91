"""Gives a language model a sentence level, trains it for a moment, saves it, loads it and lets it write.

python examples/wrap_and_train.py                # around a tiny Llama made on the spot: seconds, nothing is downloaded
python examples/wrap_and_train.py path/or/name   # around a language model of yours

A hundred steps on twelve short texts teach it these texts at best. How to train for more is in docs/training.md; here
is how the parts fit together.
"""

import sys
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TextStreamer,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_sllm import SllmForCausalLM
from hf_sllm.data import BlockCollator, load_documents, make_blocks, start_token_id, train_tokenizer

set_seed(0)
documents = load_documents(Path(__file__).parents[1] / "tests" / "data" / "tiny.jsonl")

# The backbone: any causal language model of transformers.
if len(sys.argv) > 1:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    backbone = AutoModelForCausalLM.from_pretrained(sys.argv[1])
else:
    tokenizer = train_tokenizer(documents["text"], vocab_size=400)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    backbone = LlamaForCausalLM(config)

# The sentence level: the encoder begins as the backbone's first layer, the decoder as its first and its last.
before = backbone.num_parameters()
model = SllmForCausalLM.from_backbone(backbone, tokenizer, encoder_layers=1, decoder_layers=2)
print(f"{before:,} parameters, and {model.num_parameters() - before:,} more for the sentence level")

# Training is transformers' own. Each example is a document, or as many whole sentences of it as fit.
blocks = make_blocks(documents, tokenizer, model.config, block_size=128)
trainer = Trainer(
    model,
    TrainingArguments(
        "runs/wrapped",
        max_steps=100,
        learning_rate=5e-3,
        per_device_train_batch_size=4,
        logging_steps=20,
        save_strategy="no",
        disable_tqdm=True,
    ),
    train_dataset=blocks,
    data_collator=BlockCollator(tokenizer.eos_token_id),
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model()  # weights, config, tokenizer, and the model's code

# It loads like any model, here or elsewhere, and writes a sentence at a time.
model = AutoModelForCausalLM.from_pretrained("runs/wrapped")
start = tokenizer.decode([start_token_id(tokenizer)])
inputs = tokenizer(start + "The cat", return_tensors="pt", add_special_tokens=False)
model.generate(**inputs, max_sentences=3, do_sample=False, streamer=TextStreamer(tokenizer))

"""Writes a story with the embedded checkpoint, sentence by sentence, then looks at the latents of its sentences.

python examples/write_and_look_inside.py
"""

import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from hf_sllm.embedded import embedded_checkpoint
from hf_sllm.evaluation import score_documents
from hf_sllm.streaming import SentenceStreamer

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint())

# Each sentence arrives as soon as it is written; the first piece is the prompt.
pieces: list[str] = []
streamer = SentenceStreamer(tokenizer, pieces.append)
inputs = tokenizer("<s>Once upon a time", return_tensors="pt")
ids = model.generate(**inputs, max_sentences=12, do_sample=True, temperature=0.7, streamer=streamer)
print("".join(pieces))
print(
    f"{streamer.sentences} sentences, {streamer.tokens} tokens, {streamer.tokens / streamer.seconds:.0f} per second\n"
)

# Where the sentences are, as the model cuts them, and the latents of each, as one vector.
layout = model.model.segmenter.layout(ids, torch.ones_like(ids, dtype=torch.bool))
count = len(layout.sentence_row)
sentences = [tokenizer.decode(ids[0][layout.token_sentence == j]) for j in range(count)]
with torch.no_grad():
    latents, _ = model.encode_sentences(ids)  # (1, sentences, num_latents, latent_size)
vectors = latents[0].flatten(1)

# What is common to all sentences says nothing of any: it is taken out before they are compared.
directions = normalize(vectors - vectors.mean(0), dim=1)
cosines = directions @ directions.T - 2 * torch.eye(count)
for j, sentence in enumerate(sentences):
    nearest = int(cosines[j].argmax())
    print(f"{sentence!r}\n    is nearest to {sentences[nearest]!r}, cosine {cosines[j, nearest]:.2f}")

# How surprised the model is by each sentence of another text, in bits; the end of the text is one too.
text = "Tom had a red ball. He lost it in the park. The wind reads a green Tuesday."
scores = next(score_documents(model, tokenizer, [{"text": text}], rule=model.config, progress=False))
print()
for j in scores.sentence.unique().tolist():
    own = scores.sentence == j
    bits = scores.nats[own] / torch.log(torch.tensor(2.0))
    print(f"{tokenizer.decode(scores.token_ids[own])!r}: {bits.sum():.1f} bits, {bits.mean():.1f} per token")

"""Says something once, writes a story far beyond the decoder's window, and asks for what was said.

python examples/remember.py
"""

from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from hf_sllm.embedded import embedded_checkpoint

tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint())


def write(text: str, **kwargs) -> str:
    """The text, with what the model writes after it."""
    ids = model.generate(**tokenizer(f"<s>{text}", return_tensors="pt"), **kwargs)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


set_seed(0)
story = write("Once upon a time", max_sentences=40, min_new_tokens=400, do_sample=True, temperature=0.7)
print(story)

far = tokenizer(story, return_tensors="pt")["input_ids"].shape[1]
print(f"\nThe story has {far} tokens, and the decoder sees {model.config.decoder_context_length} back.")
print("Now one sentence is put before it, and the model ends the last one:\n")
for first, last in (
    ("The name of the dog was Tim.", "The name of the dog was"),
    ("The name of the dog was Lucy.", "The name of the dog was"),
    ("The color of the boat was pink.", "The color of the boat was"),
    ("The color of the boat was green.", "The color of the boat was"),
):
    whole = write(f"{first} {story} {last}", max_sentences=1, max_new_tokens=8)
    print(f"{first} … {last}\033[1m{whole[len(f'{first} {story} {last}') :]}\033[0m")

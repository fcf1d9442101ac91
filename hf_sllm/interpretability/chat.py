"""What a chat model is asked when it explains features, and when it judges explanations."""

import math
import re
from collections.abc import Callable, Sequence

EXPLAIN = (
    "You study one feature of a language model. You are shown sentences on which it fires, each after the strength, "
    "from 1 to 10. Say in one short line what the sentences have in common that other sentences have not. Do not list "
    "examples, and do not speak of the strengths. The last line of your answer is `Explanation: ` and that line."
)
DETECT = (
    "You are given a description of sentences, and some numbered sentences. Say for each whether the description "
    "fits it. Answer with a list of as many digits, 1 for yes and 0 for no, such as [1, 0, 0, 1, 0], and nothing else."
)

# Sentences of one question.
AT_ONCE = 5


def describe(chat: Callable[[list[str]], str], texts: Sequence[str], values: Sequence[float]) -> str:
    """What a chat model says that sentences have in common, given how strongly a feature fires on each."""
    largest = max(values)
    lines = [f"{math.ceil(10 * v / largest)}: {text}" for text, v in zip(texts, values, strict=True)]
    reply = chat([EXPLAIN, "\n".join(lines)]).strip()
    found = re.findall(r"^\W*explanation\W*:\s*(.+)$", reply, re.IGNORECASE | re.MULTILINE)
    return (found or reply.splitlines() or [""])[-1].strip(" *")


def detect(chat: Callable[[list[str]], str], explanation: str, texts: Sequence[str]) -> list[float]:
    """1 for each sentence that a chat model says to fit an explanation; what it leaves open counts as 0."""
    judged: list[float] = []
    for begin in range(0, len(texts), AT_ONCE):
        part = texts[begin : begin + AT_ONCE]
        numbered = "\n".join(f"{number}. {text}" for number, text in enumerate(part, 1))
        reply = chat([DETECT, f"Description: {explanation}\n{numbered}"])
        digits = [float(digit) for digit in re.findall(r"\b[01]\b", reply)][: len(part)]
        judged += digits + [0.0] * (len(part) - len(digits))
    return judged


__all__ = ["describe", "detect"]

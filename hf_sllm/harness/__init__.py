"""lm-evaluation-harness on an SLLM: its command with our models known to it, and tasks on the user's own files.

It measures through the harness's `hf` model, to which an SLLM is any causal language model: nothing here knows one.
"""

from .run import TASKS, run

__all__ = ["TASKS", "run"]

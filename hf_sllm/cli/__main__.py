"""`python -m hf_sllm.cli` is `hf-sllm`."""

from . import app

app()

"""The `hf-sllm` command, a module for each group: what is heavy is imported by the command that needs it."""

from . import bench, codec, corpus, data, evaluate, sae, share, train, write  # noqa: F401  each adds its commands to the app
from .common import app

__all__ = ["app"]

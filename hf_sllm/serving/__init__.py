"""A server for OpenAI clients, which writes the texts of all of them in one batch."""

from .run import serve

__all__ = ["serve"]

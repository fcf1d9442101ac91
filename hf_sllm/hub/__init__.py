"""Sharing a model: its card, and what of its folder goes to the Hub."""

from .card import About, is_generated, load_about, make_card
from .run import Plan, plan, push

__all__ = ["About", "Plan", "is_generated", "load_about", "make_card", "plan", "push"]

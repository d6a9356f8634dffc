"""Remove named knowledge from a language model, keep the rest, and show what was done."""

__version__ = "0.1.0"

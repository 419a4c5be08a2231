"""Find how to merge language models: search, score, guard, certify."""

__version__ = "0.1.0"

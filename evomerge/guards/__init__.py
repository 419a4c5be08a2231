"""Scores become a verdict: what was gained, what was lost, and whether the documents can tell."""

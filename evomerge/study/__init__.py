"""The loop: propose, score, race, record, select."""

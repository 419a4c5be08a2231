"""A recipe becomes weights: checkpoints are read, a plan is made and checked, tensors stream into a live model or onto disk."""

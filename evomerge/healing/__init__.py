"""A short distillation after the merge: the merged model learns back, from its own parents, what merging cost it."""

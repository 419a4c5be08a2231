"""The mathematics of merging in plain torch: the specification, and the path on a CPU."""

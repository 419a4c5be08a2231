"""The mathematics of merging in plain torch: the specification, and the path where no kernel takes the tensors."""

"""The internals of `fold_checkpoint`: file layouts, the jobs that copy or merge tensors, and writing the output."""

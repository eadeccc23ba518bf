"""Folding into exported programs, `.pt2` and `.onnx`: the weights change where they lie, and all else is copied."""

"""Weights of linear layers set to 0 for all inputs: the methods, and the statistics by which they score."""

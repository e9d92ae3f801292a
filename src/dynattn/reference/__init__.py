"""The definitions in plain PyTorch, one file a method: what the kernels are tested against."""

"""The definitions in plain PyTorch: what the kernels are tested against."""

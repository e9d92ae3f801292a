"""The operators that are registered with ``torch.library``: schemas, fakes, gradients and device implementations."""

"""dynattn inside the models of other libraries. Each integration has a ``register()``; importing it changes nothing."""

from dynattn.integrations import transformers

__all__ = ["transformers"]

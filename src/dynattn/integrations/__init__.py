"""dynattn inside other libraries' models: a ``register()`` each; importing changes nothing."""

from dynattn.integrations import transformers

__all__ = ["transformers"]

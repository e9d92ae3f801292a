"""dynattn inside the models of other libraries, by a call: importing an integration changes nothing."""

from dynattn.integrations import transformers

__all__ = ["transformers"]

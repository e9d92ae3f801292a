"""``dynattn finetune``: train a pretrained model by the same recipe with dense and with sparse attention."""

from dynattn.lab.finetune.document import page
from dynattn.lab.finetune.terminal import summary

__all__ = ["page", "summary"]

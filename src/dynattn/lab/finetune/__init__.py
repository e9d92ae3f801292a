"""What trainings gave, as a page and in a terminal."""

from dynattn.lab.finetune.document import page
from dynattn.lab.finetune.terminal import present, summary

__all__ = ["page", "present", "summary"]

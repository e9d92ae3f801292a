"""What trainings gave, as a page and in a terminal."""

from dynattn.report.finetune.document import page
from dynattn.report.finetune.terminal import present, summary

__all__ = ["page", "present", "summary"]

"""The frontier of sparse attention methods on a model, as a page and in a terminal."""

from dynattn.report.frontier.document import page

__all__ = ["page"]

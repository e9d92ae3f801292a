"""Tasks in the manner of the Long Range Arena, arXiv:2011.04006, and a small encoder trained on them from scratch."""

"""``dynattn bench``: cases as data, interleaved timing, the machine's roofline, and the record of a run."""

"""Measures decoding with a key-value cache: quality and speed of each way to attend, or to forget, after a dense
prompt."""

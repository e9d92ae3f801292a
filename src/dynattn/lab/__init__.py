"""Everything that measures: quality on real models and real data, which packages carry, and speed. One folder a
command."""

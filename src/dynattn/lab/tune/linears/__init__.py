"""Linear layers that leave inputs or weights out, as candidates of ``dynattn tune``: what each of them takes, what it
harms, and settings that spread methods over them."""

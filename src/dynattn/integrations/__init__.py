"""dynattn inside other libraries' models: a ``register()`` each; importing changes nothing."""

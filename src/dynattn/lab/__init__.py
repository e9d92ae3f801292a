"""Quality on real models and real data that packages carry, so that nothing else needs to be downloaded."""

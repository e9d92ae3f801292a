"""Make a model faster within a stated loss: where time goes, what each layer can spare, the fastest choice, a proof."""

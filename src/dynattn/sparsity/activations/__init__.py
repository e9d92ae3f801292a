"""Inputs of linear layers left out, chosen anew for each token: the methods, their thresholds, and what runs them."""

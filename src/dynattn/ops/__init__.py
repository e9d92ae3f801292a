"""Operators registered with torch.library, and the choice between their backends."""

"""Mathematics that methods share: scores, selection, positions, estimates and hashes. Nothing here knows a method."""

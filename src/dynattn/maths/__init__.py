"""What methods share, and that knows no method."""

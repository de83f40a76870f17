"""People's pictures and videos: brought to a model's size, masked, joined, previewed, written to files."""

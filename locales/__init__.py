"""What ComfyUI and the pack show in other languages: a folder each, and what finds a message's translation."""

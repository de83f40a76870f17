"""LoRA files of every dialect -> patches of a MODEL, and back."""

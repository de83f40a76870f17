"""Training: datasets of clips, CogVideoX's objective, LoRA, and one loop for the graph and for many machines."""

"""What a developer's checkout runs: set-up, test host, embedded checkpoints. ComfyUI never imports it."""

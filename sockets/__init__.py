"""What ComfyUI passes between nodes: MODEL, CLIP, VAE and CONTROL_NET over CogVideoX's networks."""

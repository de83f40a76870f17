"""The denoiser: diffusers' module tree under ComfyUI's operations, with our forward."""

# transformer_options key: {"resample": stretch a learned table to any size, "riflex": RIFLEx for long videos}
POSITIONS = "cogvideox_positions"

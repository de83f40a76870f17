"""The denoiser: diffusers' module tree under ComfyUI's operations, with our forward."""

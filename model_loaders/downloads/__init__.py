"""Download checkpoints from the model hub: resumable, verified. Nothing here needs torch or ComfyUI."""

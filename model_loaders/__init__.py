"""From bytes on disk to MODEL, CLIP and VAE."""

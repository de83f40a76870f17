"""What the pack asks of ComfyUI itself: operations, version probes, folders, messages."""

"""Files, paths, names and threads of the operating system: nothing of ComfyUI or torch."""

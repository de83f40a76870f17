"""CogVideoX's sampling equations as plain functions, and their adapter to ComfyUI."""

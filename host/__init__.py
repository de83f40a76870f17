"""What depends on ComfyUI's versions and internals: operations, patchers, folders, previews, messages."""

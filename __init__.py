"""CogVideoX for ComfyUI, exactly as its reference implementation runs it.

ComfyUI imports this file at start and asks comfy_entrypoint for the nodes; nothing here loads diffusers.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> "CogVideoXExtension":  # noqa: F821
    """ComfyUI's V3 entry point."""
    from .nodes import CogVideoXExtension

    return CogVideoXExtension()

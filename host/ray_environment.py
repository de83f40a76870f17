"""What Ray is told by environment variables, which it reads when it is imported. No import of ComfyUI: `dev.py farm`
needs it on machines that have none."""

import os
import secrets


def ray_environment(is_alone: bool) -> dict[str, str]:
    """Variables for a Ray that asks every caller for a token, made for this process, and reports nothing to anybody.
    They are for the place of those alone that the user has not set.

    is_alone: no other machine is to reach it. It then listens on the loopback address alone, as it does by itself on
    Windows and macOS.
    """
    chosen = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        chosen["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if is_alone:
        chosen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return chosen


def prepare_ray(is_alone: bool) -> None:
    """Give Ray, which is about to be imported, what ray_environment has for it. What the user has set stays."""
    for name, value in ray_environment(is_alone).items():
        os.environ.setdefault(name, value)

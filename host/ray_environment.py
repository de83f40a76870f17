"""What Ray is told by environment variables, which it reads when it is imported. No import of ComfyUI: `dev.py farm`
needs it on machines that have none."""

import secrets
from collections.abc import MutableMapping

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": the address of this machine alone, whatever its system

_TEN_YEARS_S = 10 * 366 * 24 * 3600


def prepare(environ: MutableMapping[str, str], is_alone: bool) -> None:
    """Put into `environ`, for a Ray that is about to be imported, what has it ask every caller for a token, made here,
    and report nothing to anybody. What the user has set stays, but for the loopback address: a program that restarts
    itself hands on what the one before it had.

    is_alone: no other machine is to reach it. It then listens on the loopback address alone, as it does by itself on
    Windows and macOS.
    """
    # Without AUTO_CONNECT a call of a Ray that another pack has ended would start one with Ray's defaults.
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_AUTO_CONNECT": "0",
        # Ray would end all of ComfyUI a minute after it has lost its server, or the first machine of a cluster.
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(_TEN_YEARS_S),
    }
    if "RAY_AUTH_TOKEN_PATH" not in environ:
        chosen["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if environ.get(LOOPBACK) == "0" or is_alone:
        environ.pop(LOOPBACK, None)
    if is_alone:
        chosen[LOOPBACK] = "0"
    for name, value in chosen.items():
        environ.setdefault(name, value)

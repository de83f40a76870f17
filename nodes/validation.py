"""Checks that several nodes share."""

from collections.abc import Callable

from ..errors import UserError
from ..sockets.vae import CogVideoXVAE


def problem(check: Callable[[], object]) -> bool | str:
    """True where `check` passes, otherwise the message of what it raised."""
    try:
        check()
    except UserError as error:
        return str(error)
    return True


def require_vae(vae: object) -> None:
    """Raises UserError for a VAE that is not CogVideoX's as our loaders give it."""
    if not isinstance(vae, CogVideoXVAE):
        raise UserError(
            f"The VAE is a {type(vae).__name__} from another loader; ComfyUI's own CogVideoX code gives other numbers. "
            "Connect the VAE of Load CogVideoX VAE or Load CogVideoX Pipeline, or use ComfyUI's own VAE nodes for it."
        )

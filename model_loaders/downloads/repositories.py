"""The published checkpoints: their repositories, sizes and licences. No import of torch or ComfyUI."""

from dataclasses import dataclass

from ...errors import UserError

APACHE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
COGVIDEOX = ("CogVideoX LICENSE", "https://huggingface.co/zai-org/CogVideoX-5b/blob/main/LICENSE")


@dataclass(frozen=True)
class Repository:
    """One checkpoint on the model hub.

    name: its folder under models/diffusers, and the value that workflows contain.
    gigabytes: about 10^9 bytes, transformer, text encoder and VAE together; the hub's list of files has exact sizes.
    made_for: the pixels, frames and frames per second that it was trained on.
    """

    name: str
    repository: str
    gigabytes: float
    licence: str
    licence_url: str
    made_for: str

    def describe(self) -> str:
        """One line for the user: name, size, licence."""
        return f"{self.name}: about {self.gigabytes:.0f} GB, {self.licence} ({self.licence_url})"


def _official(name: str, gigabytes: float, licence: tuple[str, str], made_for: str) -> Repository:
    return Repository(name, f"zai-org/{name}", gigabytes, *licence, made_for)


def _fun(name: str, gigabytes: float, licence: tuple[str, str], made_for: str) -> Repository:
    return Repository(name, f"alibaba-pai/{name}", gigabytes, *licence, made_for)


_480P = "720 x 480, 49 frames, 8 fps"
_768P = "1360 x 768, 81 frames, 16 fps"
_FUN = "512 to 1280 pixels, 49 frames, 8 fps"
# The sizes of the official checkpoints are computed: 1.69 or 5.57 billion parameters of the transformer, 4.76 of T5 and
# 0.22 of the VAE, two bytes each. Source of the Fun models' sizes and of all licences: the READMEs of THUDM/CogVideo
# and aigc-apps/CogVideoX-Fun.
REPOSITORIES = (
    _official("CogVideoX-2b", 13.3, APACHE, _480P),
    _official("CogVideoX-5b", 21.1, COGVIDEOX, _480P),
    _official("CogVideoX-5b-I2V", 21.1, COGVIDEOX, _480P),
    _official("CogVideoX1.5-5B", 21.1, COGVIDEOX, _768P),
    _official("CogVideoX1.5-5B-I2V", 21.1, COGVIDEOX, _768P),
    _fun("CogVideoX-Fun-V1.5-5b-InP", 20.0, COGVIDEOX, "512 to 1024 pixels, 85 frames, 8 fps"),
    _fun("CogVideoX-Fun-V1.1-2b-InP", 13.0, APACHE, _FUN),
    _fun("CogVideoX-Fun-V1.1-5b-InP", 20.0, COGVIDEOX, _FUN),
    _fun("CogVideoX-Fun-V1.1-2b-Control", 13.0, APACHE, _FUN),
    _fun("CogVideoX-Fun-V1.1-5b-Control", 20.0, COGVIDEOX, _FUN),
    _fun("CogVideoX-Fun-V1.1-2b-Pose", 13.0, APACHE, _FUN),
    _fun("CogVideoX-Fun-V1.1-5b-Pose", 20.0, COGVIDEOX, _FUN),
    _fun("CogVideoX-Fun-2b-InP", 13.0, APACHE, _FUN),
    _fun("CogVideoX-Fun-5b-InP", 20.0, COGVIDEOX, _FUN),
)


def find_repository(name: str) -> Repository:
    """The checkpoint with this name, in upper or lower case. Raises UserError, which lists all names."""
    for entry in REPOSITORIES:
        if entry.name.lower() == str(name).lower():
            return entry
    known = ", ".join(entry.name for entry in REPOSITORIES)
    raise UserError(f"There is no checkpoint {str(name)[:100]!r} to download. Choose one of: {known}.")

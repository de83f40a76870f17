"""What is published: whole checkpoints and single files, with their addresses, sizes, hashes and licences.

The one table of addresses; nothing else in the pack names one, and a workflow can choose none but these. `python3
dev.py models check` asks each of them what it holds now. No import of torch or ComfyUI.
"""

from typing import NamedTuple

from ...errors import UserError

HUGGING_FACE, MODELSCOPE = "Hugging Face", "ModelScope"
SOURCES = (HUGGING_FACE, MODELSCOPE)  # the hubs; the first is that of HF_ENDPOINT where that is set
APACHE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
COGVIDEOX = ("CogVideoX LICENSE", "https://huggingface.co/zai-org/CogVideoX-5b/blob/main/LICENSE")


class Repository(NamedTuple):
    """One checkpoint on the model hubs.

    name: its folder under models/diffusers, and the value that workflows contain.
    repository, modelscope: its names on Hugging Face and on ModelScope.
    gigabytes: about 10^9 bytes, transformer, text encoder and VAE together; the hub's list of files has exact sizes.
    made_for: the pixels, frames and frames per second that it was trained on.
    """

    name: str
    repository: str
    modelscope: str
    gigabytes: float
    licence: str
    licence_url: str
    made_for: str

    def on(self, source: str) -> str:
        """Its name on a hub of SOURCES."""
        return self.modelscope if source == MODELSCOPE else self.repository

    def describe(self) -> str:
        """One line for the user: name, size, licence."""
        return f"{self.name}: about {self.gigabytes:.0f} GB, {self.licence} ({self.licence_url})"


class SingleFile(NamedTuple):
    """One published file that does a loader's job alone.

    repository, path: where it is on Hugging Face. directory: the folder of ComfyUI's models that it goes into.
    gigabytes: about 10^9 bytes. size: bytes, and sha256: 64 hexadecimal digits, None where they are not published.
    holds: "transformer", "text_encoder" or "vae"; "upscaler" or "interpolation" for ComfyUI's own nodes. families: what
    a transformer is, by sockets.families.
    """

    repository: str
    path: str
    directory: str
    gigabytes: float
    size: int | None
    sha256: str | None
    licence: str
    licence_url: str
    holds: str
    families: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name: what a loader lists, and what the file is called after a download with a browser."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def url(self) -> str:
        """The address of the file itself. ComfyUI's dialog of missing models downloads from https://huggingface.co."""
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.path}"

    def as_property(self) -> dict[str, str]:
        """The entry in `properties.models` of a node in a workflow, from which ComfyUI offers the download.

        Its name has to equal the value of the node's list.
        """
        found = {"name": self.name, "url": self.url, "directory": self.directory}
        return found if self.sha256 is None else {**found, "hash": self.sha256, "hash_type": "SHA256"}


def _official(name: str, gigabytes: float, licence: tuple[str, str], made_for: str) -> Repository:
    return Repository(name, f"zai-org/{name}", f"ZhipuAI/{name}", gigabytes, *licence, made_for)


def _fun(name: str, gigabytes: float, licence: tuple[str, str], made_for: str) -> Repository:
    return Repository(name, f"alibaba-pai/{name}", f"PAI/{name}", gigabytes, *licence, made_for)


_480P = "720 x 480, 49 frames, 8 fps"
_768P = "1360 x 768, 81 frames, 16 fps"
_FUN = "512 to 1280 pixels, 49 frames, 8 fps"
# Sources. Names: the READMEs of THUDM/CogVideo (Hugging Face and ModelScope's ZhipuAI; THUDM is zai-org now) and of
# aigc-apps/VideoX-Fun (alibaba-pai, and PAI on ModelScope). Sizes of the official checkpoints: the lists of files on
# their pages. 2b 13.8 GB and 5b 21.5 GB, whose VAEs are in fp32 since "Upload VAE in fp32"; 5b-I2V 11.3 + 9.5 + 0.9 GB;
# 1.5-5B 31.1 GB, because its text encoder is in fp32, in four files (1.5-5B-I2V has the same four). Sizes of the Fun
# models and all licences: the two READMEs.
REPOSITORIES = (
    _official("CogVideoX-2b", 13.8, APACHE, _480P),
    _official("CogVideoX-5b", 21.5, COGVIDEOX, _480P),
    _official("CogVideoX-5b-I2V", 21.7, COGVIDEOX, _480P),
    _official("CogVideoX1.5-5B", 31.1, COGVIDEOX, _768P),
    _official("CogVideoX1.5-5B-I2V", 31.1, COGVIDEOX, _768P),
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


def _transformer(
    repository: str, path: str, gigabytes: float, size: int | None, sha256: str | None, family: str
) -> SingleFile:
    licence, licence_url = APACHE if family == "VOID" else COGVIDEOX
    place = repository, path, "diffusion_models"
    return SingleFile(*place, gigabytes, size, sha256, licence, licence_url, "transformer", (family,))


def _t5(path: str, gigabytes: float, size: int, sha256: str) -> SingleFile:
    place = "comfyanonymous/flux_text_encoders", path, "text_encoders"
    return SingleFile(*place, gigabytes, size, sha256, *APACHE, "text_encoder")


def _vae(repository: str, path: str) -> SingleFile:
    # CogVideo's README puts the transformers of 5b and 1.5 under the CogVideoX LICENSE, and 2b's VAE under Apache-2.0.
    return SingleFile(repository, path, "vae", 0.4, None, None, *APACHE, "vae")


_KIJAI, _KIJAI_GGUF, _MINUS = "Kijai/CogVideoX-comfy", "Kijai/CogVideoX_GGUF", "MinusZoneAI/ComfyUI-CogVideoX-MZ"
_VOID = "Comfy-Org/void-model"
# Source of each hash and size: the page of the file, or of the commit that added it, on the repository's own pages; a
# comment has that commit. A size that only the page's list of files gives, in GB, is None here. There is no single file
# of CogVideoX-2b with a name of its own: its transformer is called diffusion_pytorch_model.safetensors, so that one
# takes the whole folder.
FILES = (
    _transformer(  # f8ca909
        _MINUS,
        "CogVideoX_5b_bf16.safetensors",
        11.1,
        11140682928,
        "0ceadd62431b4c7adee7081a4d3042b9807f2108c3421e060a49fa38fd2fb48f",
        "CogVideoX-5b",
    ),
    _transformer(  # f8ca909
        _MINUS,
        "CogVideoX_5b_fp8_4em.safetensors",
        5.6,
        5570402520,
        "6ef064f481b2cf4a7dba690b02504e742d1fd3dfe9fa5f430e0d08e4e53b79af",
        "CogVideoX-5b",
    ),
    _transformer(  # f8ca909
        _MINUS,
        "CogVideoX_5b_GGUF_Q4_0.safetensors",
        3.5,
        3491951736,
        "13bb3e1d709bb96ae039d09bfe38483a155767070b3d5a516d9b353b19fbf6f8",
        "CogVideoX-5b",
    ),
    _transformer(  # f19bf7c
        _KIJAI,
        "CogVideoX_1_0_5b_I2V_bf16.safetensors",
        11.3,
        None,
        "ffa42f98baa354a04e445af43492562622df2c0bd9c4653b30d9251e732f8fe3",
        "CogVideoX-5b-I2V",
    ),
    _transformer(  # ac9a740
        _KIJAI_GGUF,
        "CogVideoX_5b_I2V_GGUF_Q4_0.safetensors",
        3.5,
        None,
        "c70632e8391f0098b5dd7d7cc7eceef62465874f63b84995d250c275af9abc25",
        "CogVideoX-5b-I2V",
    ),
    _transformer(  # c247f98
        _KIJAI,
        "CogVideoX_1_5_5b_T2V_bf16.safetensors",
        11.1,
        None,
        "d8ff4a84a50813fc581d64ba4370705f5e29883f5103ef036469ce25ae8bee54",
        "CogVideoX1.5-5B",
    ),
    _transformer(  # f19bf7c
        _KIJAI,
        "CogVideoX_1_5_5b_I2V_bf16.safetensors",
        11.1,
        None,
        "a62099599c79c540aedbadc45fa328e9515058014bcee86c1a60dda0c9df15d3",
        "CogVideoX1.5-5B-I2V",
    ),
    _transformer(  # 86363a1
        _KIJAI_GGUF,
        "CogVideoX_5b_1_5_I2V_GGUF_Q4_0.safetensors",
        4.4,
        4426696544,
        "73e09992d764822bc8310f50577b30e05140a8c8a77ccac233911c14b7a08539",
        "CogVideoX1.5-5B-I2V",
    ),
    _transformer(  # 2be7137
        _KIJAI,
        "CogVideoX_Fun_1_1_5b_Control_bf16.safetensors",
        11.1,
        None,
        "6b28461d4df9717d8d65f36f2741c121c7f7127d2d2580f0fe00cd48cfa7d205",
        "CogVideoX-Fun-5b-Control",
    ),
    _transformer(  # a28468a
        _KIJAI,
        "CogVideoX_Fun_1_1_5b_Control_fp8_e4m3fn.safetensors",
        5.6,
        5585813352,
        "6eba13b8145227ed66325c3542dea4e658e643dec7c9cde43ba02b62424f8448",
        "CogVideoX-Fun-5b-Control",
    ),
    # ComfyUI's template of VOID and its blueprint name these addresses; the hashes are those of the commits that added
    # the files to the repository, before they lay in its folder diffusion_models.
    _transformer(  # 66acad5
        _VOID,
        "diffusion_models/void_pass1.safetensors",
        11.1,
        11143025952,
        "f3fff936d57008c39054e37ae0db6a3fd3f48ccaf1291a186e28d8760d68e6f3",
        "VOID",
    ),
    _transformer(  # 07cff13
        _VOID,
        "diffusion_models/void_pass2.safetensors",
        11.1,
        11143025952,
        "884d96ae3be9e2c899f15446aee69260f56e21496c1005400fc6676701e67704",
        "VOID",
    ),
    # Hashes: the pages of the three files. Sizes: commit 2f74b39 for fp8_e4m3fn; for the other two, whose commits are
    # not stored publicly, files of the same hash: licyk/flux-model f898238, Comfy-Org/stable-diffusion-3.5-fp8 aa72678.
    _t5(
        "t5xxl_fp16.safetensors",
        9.8,
        9787841024,
        "6e480b09fae049a72d2a8c5fbccb8d3e92febeb233bbe9dfe7256958a9167635",
    ),
    _t5(
        "t5xxl_fp8_e4m3fn_scaled.safetensors",
        5.2,
        5157348688,
        "a498f0485dc9536735258018417c3fd7758dc3bccc0a645feaa472b34955557a",
    ),
    _t5(
        "t5xxl_fp8_e4m3fn.safetensors",
        4.9,
        4893934904,
        "7d330da4816157540d6bb7838bf63a0f02f573fc48ca4d8de34bb0cbfd514f09",
    ),
    # No page of these two files gives a hash. (Those of the same size in Kijai/CogVideoX-VAE, 3deb392, and at the root
    # of Comfy-Org/void-model, e8f56d9, have one and the same.)
    _vae(_KIJAI, "cogvideox_vae_bf16.safetensors"),
    _vae(_VOID, "vae/cogvideox_vae.safetensors"),
    # What ComfyUI's own templates name for larger and smoother videos; no page gives a hash of them.
    SingleFile(
        "Comfy-Org/Real-ESRGAN_repackaged",
        "RealESRGAN_x4plus.safetensors",
        "upscale_models",
        0.1,
        None,
        None,
        "BSD-3-Clause",
        "https://github.com/xinntao/Real-ESRGAN/blob/master/LICENSE",
        "upscaler",
    ),
    SingleFile(
        "Comfy-Org/frame_interpolation",
        "frame_interpolation/film_net_fp16.safetensors",
        "frame_interpolation",
        0.1,
        None,
        None,
        "Apache-2.0",
        "https://github.com/google-research/frame-interpolation/blob/main/LICENSE",
        "interpolation",
    ),
)


def find_repository(name: str) -> Repository:
    """The checkpoint with this name, in upper or lower case. Raises UserError, which lists all names."""
    for entry in REPOSITORIES:
        if entry.name.lower() == str(name).lower():
            return entry
    known = ", ".join(entry.name for entry in REPOSITORIES)
    raise UserError(f"There is no checkpoint {str(name)[:100]!r} to download. Choose one of: {known}.")


def find_file(name: str) -> SingleFile | None:
    """The published single file of this name; None for any other name."""
    return next((entry for entry in FILES if entry.name == name), None)


def find_source(source: str) -> str:
    """`source`, if it is one of SOURCES, in upper or lower case. Raises UserError, which lists them."""
    for known in SOURCES:
        if known.lower() == str(source).lower():
            return known
    raise UserError(f"There is no source {str(source)[:100]!r} of checkpoints. Choose {' or '.join(SOURCES)}.")

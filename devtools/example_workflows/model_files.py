"""Model files that ComfyUI's own dialog can download: one file each, with its public address.

Sources. RealESRGAN_x4plus, film_net_fp16 and t5xxl_*: ComfyUI's own templates and blueprints (the package
comfyui-workflow-templates, ComfyUI 0.30.0). The others: the pages of kijai's and MinusZoneAI's repositories on the hub.
Hashes: the pages of the files, or of the commits that added them. No test can open an address.
"""

from dataclasses import dataclass

_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class ModelFile:
    """One file. name: as the loader lists it. directory: below ComfyUI's models folder. gigabytes: about 10^9 bytes.
    sha256: "" where not known."""

    name: str
    url: str
    directory: str
    gigabytes: float
    sha256: str = ""

    def as_property(self) -> dict[str, str]:
        """An entry of a node's `properties.models`, which ComfyUI's frontend reads."""
        known = {"hash": self.sha256, "hash_type": "SHA256"} if self.sha256 else {}
        return {"name": self.name, "url": self.url, "directory": self.directory, **known}


def _file(directory: str, repository: str, path: str, gigabytes: float, sha256: str = "") -> ModelFile:
    return ModelFile(path.rpartition("/")[2], f"{_HUB}/{repository}/resolve/main/{path}", directory, gigabytes, sha256)


def _transformer(name: str, gigabytes: float, sha256: str, repository: str = "Kijai/CogVideoX-comfy") -> ModelFile:
    return _file("diffusion_models", repository, name, gigabytes, sha256)


def _t5(name: str, gigabytes: float, sha256: str) -> ModelFile:
    return _file("text_encoders", "comfyanonymous/flux_text_encoders", name, gigabytes, sha256)


T2V = _transformer(
    "CogVideoX_5b_bf16.safetensors",
    11.1,
    "0ceadd62431b4c7adee7081a4d3042b9807f2108c3421e060a49fa38fd2fb48f",
    "MinusZoneAI/ComfyUI-CogVideoX-MZ",
)
T2V_1_5 = _transformer(
    "CogVideoX_1_5_5b_T2V_bf16.safetensors", 11.1, "d8ff4a84a50813fc581d64ba4370705f5e29883f5103ef036469ce25ae8bee54"
)
I2V = _transformer(
    "CogVideoX_1_0_5b_I2V_bf16.safetensors", 11.3, "ffa42f98baa354a04e445af43492562622df2c0bd9c4653b30d9251e732f8fe3"
)
I2V_1_5 = _transformer(
    "CogVideoX_1_5_5b_I2V_bf16.safetensors", 11.1, "a62099599c79c540aedbadc45fa328e9515058014bcee86c1a60dda0c9df15d3"
)
FUN_CONTROL = _transformer(
    "CogVideoX_Fun_1_1_5b_Control_bf16.safetensors",
    11.1,
    "6b28461d4df9717d8d65f36f2741c121c7f7127d2d2580f0fe00cd48cfa7d205",
)
FUN_CONTROL_FP8 = _transformer(
    "CogVideoX_Fun_1_1_5b_Control_fp8_e4m3fn.safetensors",
    5.6,
    "6eba13b8145227ed66325c3542dea4e658e643dec7c9cde43ba02b62424f8448",
)
T5_FP16 = _t5("t5xxl_fp16.safetensors", 9.8, "6e480b09fae049a72d2a8c5fbccb8d3e92febeb233bbe9dfe7256958a9167635")
T5_FP8 = _t5(
    "t5xxl_fp8_e4m3fn_scaled.safetensors", 5.2, "a498f0485dc9536735258018417c3fd7758dc3bccc0a645feaa472b34955557a"
)
VAE = _file("vae", "Kijai/CogVideoX-comfy", "cogvideox_vae_bf16.safetensors", 0.4)
UPSCALER = _file("upscale_models", "Comfy-Org/Real-ESRGAN_repackaged", "RealESRGAN_x4plus.safetensors", 0.1)
INTERPOLATION = _file(
    "frame_interpolation", "Comfy-Org/frame_interpolation", "frame_interpolation/film_net_fp16.safetensors", 0.1
)

"""ComfyUI's face of the pack: schemas, sockets and messages."""

from comfy_api.latest import ComfyExtension, io

from .decode import CogVideoXDecode
from .latent import CogVideoXEmptyLatent
from .load import CogVideoXLoadModel, CogVideoXLoadPipeline, CogVideoXLoadTextEncoder, CogVideoXLoadVAE
from .sample import CogVideoXDynamicCFG, CogVideoXNoise, CogVideoXSample, CogVideoXSampler, CogVideoXScheduler
from .text import CogVideoXEncodeText

NODES: list[type[io.ComfyNode]] = [
    CogVideoXLoadPipeline,
    CogVideoXLoadModel,
    CogVideoXLoadTextEncoder,
    CogVideoXLoadVAE,
    CogVideoXEncodeText,
    CogVideoXEmptyLatent,
    CogVideoXSample,
    CogVideoXSampler,
    CogVideoXScheduler,
    CogVideoXNoise,
    CogVideoXDynamicCFG,
    CogVideoXDecode,
]


class CogVideoXExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES

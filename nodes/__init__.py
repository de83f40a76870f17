"""The pack's nodes: their schemas, sockets and messages. Calculations are in the packages below."""

from functools import partial
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

from ..errors import set_advice
from ..host.folders import start_listings
from ..host.patches import wrap_run_reports, wrap_templates, wrap_validation
from ..host.start_check import watch_node_ids
from ..host.translated_templates import SERVED_AS, serve_translated_templates
from .advice import ADVICE
from .cached_steps import CogVideoXStepCache
from .compile import CogVideoXCompile
from .controlnet import CogVideoXApplyControlNet, CogVideoXLoadControlNet
from .decode import CogVideoXDecode
from .decode_to_file import CogVideoXDecodeToFile
from .download import CogVideoXDownload
from .draft import CogVideoXDraftDecode
from .example_input import CogVideoXExample
from .extend import CogVideoXContinueVideo, CogVideoXJoinVideos
from .fun import CogVideoXFunControl, CogVideoXFunInpaint
from .image import CogVideoXImageToVideo
from .input_checks import converted_problems
from .invert import CogVideoXFollowVideo, CogVideoXInvert
from .latent import CogVideoXEmptyLatent
from .load import CogVideoXLoadModel, CogVideoXLoadPipeline, CogVideoXLoadTextEncoder, CogVideoXLoadVAE
from .long import CogVideoXContextWindows, CogVideoXPositions
from .lora import CogVideoXApplyLora, CogVideoXSaveLora
from .memory_forecast import CogVideoXMemoryForecast
from .migration_page import serve_migration
from .opened_graph import serve_opened_graph
from .own_image import CogVideoXOwnImage
from .parallel import CogVideoXParallel
from .replacing import register_replacements
from .sample import CogVideoXDynamicCFG, CogVideoXNoise, CogVideoXSample, CogVideoXSampler, CogVideoXScheduler
from .save import CogVideoXSaveModel
from .text import CogVideoXEncodeText
from .timesteps import CogVideoXTimesteps
from .train import CogVideoXSaveTrainedLora, CogVideoXTrainLora
from .training_clips import CogVideoXTrainingClips
from .video import CogVideoXEncodeVideo

NODES: list[type[io.ComfyNode]] = [
    CogVideoXLoadPipeline,
    CogVideoXLoadModel,
    CogVideoXLoadTextEncoder,
    CogVideoXLoadVAE,
    CogVideoXLoadControlNet,
    CogVideoXExample,
    CogVideoXOwnImage,
    CogVideoXDownload,
    CogVideoXSaveModel,
    CogVideoXMemoryForecast,
    CogVideoXApplyLora,
    CogVideoXSaveLora,
    CogVideoXEncodeText,
    CogVideoXEmptyLatent,
    CogVideoXImageToVideo,
    CogVideoXEncodeVideo,
    CogVideoXFunInpaint,
    CogVideoXFunControl,
    CogVideoXApplyControlNet,
    CogVideoXContinueVideo,
    CogVideoXJoinVideos,
    CogVideoXSample,
    CogVideoXSampler,
    CogVideoXScheduler,
    CogVideoXTimesteps,
    CogVideoXNoise,
    CogVideoXDynamicCFG,
    CogVideoXStepCache,
    CogVideoXCompile,
    CogVideoXParallel,
    CogVideoXContextWindows,
    CogVideoXPositions,
    CogVideoXInvert,
    CogVideoXFollowVideo,
    CogVideoXDecode,
    CogVideoXDecodeToFile,
    CogVideoXDraftDecode,
    CogVideoXTrainingClips,
    CogVideoXTrainLora,
    CogVideoXSaveTrainedLora,
]


_FOLDER = Path(__file__).parent.parent
# In a script, which does not import the nodes, the same errors name no node.
set_advice(ADVICE)


class CogVideoXExtension(ComfyExtension):
    """The object that ComfyUI asks for the pack's nodes."""

    async def on_load(self) -> None:
        await register_replacements()
        serve_migration()
        serve_opened_graph()
        serve_translated_templates(_FOLDER)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        start_listings()
        by_id = {node.__name__: node for node in NODES}  # each is named as its node_id
        wrap_validation(by_id.keys(), partial(converted_problems, by_id))
        watch_node_ids(by_id)
        wrap_run_reports()
        wrap_templates((_FOLDER.name, *SERVED_AS), "CogVideoX")
        return NODES

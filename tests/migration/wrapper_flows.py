"""Workflows of ComfyUI-CogVideoXWrapper, rebuilt from what its nodes take: as its last version saves them."""

from collections.abc import Callable, Sequence
from typing import Any

Slot = tuple[int, int]
# Outputs of the wrapper's, of ComfyUI's and of third parties' nodes, by type.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "DownloadAndLoadCogVideoModel": ("COGVIDEOMODEL", "VAE"),
    "DownloadAndLoadCogVideoGGUFModel": ("COGVIDEOMODEL", "VAE"),
    "CogVideoXModelLoader": ("COGVIDEOMODEL",),
    "CogVideoXVAELoader": ("VAE",),
    "CogVideoLoraSelect": ("COGLORA",),
    "CogVideoLoraSelectComfy": ("COGLORA",),
    "CogVideoXTorchCompileSettings": ("COMPILEARGS",),
    "CogVideoTransformerEdit": ("TRANSFORMERBLOCKS",),
    "CogVideoTextEncode": ("CONDITIONING", "CLIP"),
    "CogVideoTextEncodeCombine": ("CONDITIONING",),
    "CogVideoImageEncode": ("LATENT",),
    "CogVideoImageEncodeFunInP": ("LATENT",),
    "CogVideoContextOptions": ("COGCONTEXT",),
    "DownloadAndLoadCogVideoControlNet": ("COGVIDECONTROLNETMODEL",),
    "CogVideoControlNet": ("COGVIDECONTROLNET",),
    "CogVideoSampler": ("LATENT",),
    "CogVideoDecode": ("IMAGE",),
    "CogVideoXTeaCache": ("TEACACHEARGS",),
    "CogVideoXFasterCache": ("FASTERCACHEARGS",),
    "CogVideoEnhanceAVideo": ("FETAARGS",),
    "CogVideoLatentPreview": ("IMAGE", "STRING"),
    "CogVideoXFunResizeToClosestBucket": ("IMAGE", "INT", "INT"),
    "DownloadAndLoadToraModel": ("TORAMODEL",),
    "ToraEncodeTrajectory": ("TORAFEATURES", "IMAGE"),
    "CLIPLoader": ("CLIP",),
    "EmptyLatentImage": ("LATENT",),
    "LoadLatent": ("LATENT",),
    "LoadImage": ("IMAGE", "MASK"),
    "ImageScale": ("IMAGE",),
    "ImageResizeKJ": ("IMAGE", "INT", "INT"),
    "GetImageSizeAndCount": ("IMAGE", "INT", "INT", "INT"),
    "RepeatImageBatch": ("IMAGE",),
    "INTConstant": ("INT",),
    "Reroute": ("*",),
    "SetNode": ("*",),
    "GetNode": ("*",),
    "PrimitiveNode": ("INT",),
    "CreateCFGScheduleFloatList": ("FLOAT",),
    "GetWarpedNoiseFromVideo": ("LATENT", "IMAGE"),
    "SplineEditor": ("MASK", "STRING"),
}
T5 = "t5\\google_t5-v1_1-xxl_encoderonly-fp8_e4m3fn.safetensors"
PROMPT = "A brown bear walks along a stream"


class Flow:
    """A workflow under construction, in the format of the frontend."""

    def __init__(self) -> None:
        self.nodes: list[dict] = []
        self.links: list[list] = []

    def add(self, type_: str, *widgets: Any, **links: Slot | None) -> int:
        """A node with its widgets' values in order; returns its id. links: input -> (node, output), None for none."""
        number, entries = len(self.nodes) + 1, []
        for slot, (name, source) in enumerate(links.items()):
            entry: dict[str, Any] = {"name": name, "type": "*", "link": None}
            if source is not None:
                self.links.append([len(self.links) + 1, *source, number, slot, self._kind(source)])
                entry |= {"link": len(self.links), "type": self._kind(source)}
                self.nodes[source[0] - 1]["outputs"][source[1]]["links"].append(len(self.links))
            entries.append(entry)
        outputs = [{"name": kind, "type": kind, "links": []} for kind in OUTPUTS.get(type_, ())]
        self.nodes.append(
            {
                "id": number,
                "type": type_,
                "pos": [400 * number, 100],
                "size": [300, 200],
                "flags": {},
                "order": number,
                "mode": 0,
                "inputs": entries,
                "outputs": outputs,
                "properties": {"Node name for S&R": type_},
                "widgets_values": list(widgets),
            }
        )
        return number

    def _kind(self, source: Slot) -> str:
        return self.nodes[source[0] - 1]["outputs"][source[1]]["type"]

    def document(self) -> dict:
        """The workflow's JSON."""
        last = {"last_node_id": len(self.nodes), "last_link_id": len(self.links)}
        return {
            **last,
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    # What nearly every workflow has

    def loader(self, model: str, precision: str = "bf16", quantization: str = "disabled", **links: Slot | None) -> int:
        sockets = {"block_edit": None, "lora": None, "compile_args": None} | links
        values = (model, precision, quantization, False, "sdpa", "main_device")
        return self.add("DownloadAndLoadCogVideoModel", *values, **sockets)

    def prompts(self, text: str = PROMPT, t5: str = T5) -> tuple[Slot, Slot]:
        """Positive and negative: the second gets its CLIP from the first, as in the wrapper's own examples."""
        clip = self.add("CLIPLoader", t5, "sd3")
        positive = self.add("CogVideoTextEncode", text, 1, False, clip=(clip, 0))
        negative = self.add("CogVideoTextEncode", "", 1, True, clip=(positive, 1))
        return (positive, 0), (negative, 0)

    def picture(self, width: int, height: int, frames: int = 1) -> Slot:
        """A picture of this size, or a video that stands still."""
        image = self.add("LoadImage", "example.png", "image")
        found = (self.add("ImageScale", "lanczos", width, height, "disabled", image=(image, 0)), 0)
        return found if frames == 1 else (self.add("RepeatImageBatch", frames, image=found), 0)

    def empty(self, width: int, height: int) -> Slot:
        return self.add("EmptyLatentImage", width, height, 1), 0

    def encode(self, vae: Slot, start: Slot, *widgets: Any, end: Slot | None = None) -> Slot:
        """widgets: enable_tiling, noise_aug_strength, strength, start_percent, end_percent; the last three are newer
        than many files."""
        values = widgets or (False, 0)
        return self.add("CogVideoImageEncode", *values, vae=vae, start_image=start, end_image=end), 0

    def sample(
        self,
        model: int,
        prompts: tuple[Slot, Slot],
        frames: int = 49,
        steps: int = 50,
        scheduler: str = "CogVideoXDDIM",
        denoise: float = 1,
        **links: Slot | None,
    ) -> int:
        sockets = {"model": (model, 0), "positive": prompts[0], "negative": prompts[1]} | links
        return self.add("CogVideoSampler", frames, steps, 6, 42, "fixed", scheduler, denoise, **sockets)

    def save(self, sampled: int, vae: Slot) -> None:
        images = self.add("CogVideoDecode", True, 240, 360, 0.2, 0.2, True, vae=vae, samples=(sampled, 0))
        self.add("SaveImage", "cogvideo", images=(images, 0))


Size = tuple[int, int]


def text_to_video(
    model: str, size: Size = (720, 480), frames: int = 49, t5: str = T5, steps: int = 50, **options: Any
) -> Flow:
    flow = Flow()
    scheduler, loader = options.pop("scheduler", "CogVideoXDDIM"), flow.loader(model, **options)
    sampled = flow.sample(loader, flow.prompts(t5=t5), frames, steps, scheduler, samples=flow.empty(*size))
    flow.save(sampled, (loader, 1))
    return flow


def image_to_video(
    model: str, size: Size = (720, 480), frames: int = 49, t5: str = T5, steps: int = 25, ends: bool = False
) -> Flow:
    flow = Flow()
    loader, end = flow.loader(model), flow.picture(*size) if ends else None
    image = flow.encode((loader, 1), flow.picture(*size), end=end)
    sampled = flow.sample(loader, flow.prompts(t5=t5), frames, steps, samples=None, image_cond_latents=image)
    flow.save(sampled, (loader, 1))
    return flow


def video_to_video(
    model: str, size: Size = (720, 480), frames: int = 33, t5: str = T5, steps: int = 25, denoise: float = 0.8
) -> Flow:
    flow = Flow()
    loader = flow.loader(model)
    video = flow.encode((loader, 1), flow.picture(*size, frames=frames))
    sampled = flow.sample(loader, flow.prompts(t5=t5), frames, steps, denoise=denoise, samples=video)
    flow.save(sampled, (loader, 1))
    return flow


def fun_inpaint(
    model: str,
    size: Size = (720, 480),
    frames: int = 49,
    t5: str = T5,
    steps: int = 25,
    ends: bool = True,
    lora: str = "",
) -> Flow:
    """lora: a file, fused as its node does where it is told to."""
    flow = Flow()
    chain = (flow.add("CogVideoLoraSelect", lora, 1, True, prev_lora=None), 0) if lora else None
    loader = flow.loader(model, lora=chain)
    sockets = {
        "vae": (loader, 1),
        "start_image": flow.picture(*size),
        "end_image": flow.picture(*size) if ends else None,
    }
    image = (flow.add("CogVideoImageEncodeFunInP", frames, True, 0.03, **sockets), 0)
    sampled = flow.sample(loader, flow.prompts(t5=t5), frames, steps, image_cond_latents=image)
    flow.save(sampled, (loader, 1))
    return flow


def fun_control(model: str, size: Size = (720, 480), frames: int = 49, t5: str = T5, steps: int = 50) -> Flow:
    flow = Flow()
    loader = flow.loader(model)
    video = flow.encode((loader, 1), flow.picture(*size, frames=frames), False, 0, 0.8, 0.0, 0.5)
    sampled = flow.sample(loader, flow.prompts(t5=t5), frames, steps, image_cond_latents=video)
    flow.save(sampled, (loader, 1))
    return flow


def control_net(
    model: str,
    net: str = "TheDenk/cogvideox-2b-controlnet-hed-v1",
    size: Size = (720, 480),
    frames: int = 49,
    t5: str = T5,
    steps: int = 40,
) -> Flow:
    flow = Flow()
    loader = flow.loader(model)
    sockets = {
        "controlnet": (flow.add("DownloadAndLoadCogVideoControlNet", net), 0),
        "images": flow.picture(*size, frames=frames),
    }
    control = (flow.add("CogVideoControlNet", 0.7, 0, 0.6, **sockets), 0)
    sampled = flow.sample(loader, flow.prompts(t5=t5), frames, steps, samples=flow.empty(*size), controlnet=control)
    flow.save(sampled, (loader, 1))
    return flow


def loras(
    model: str,
    names: Sequence[tuple[str, float, bool]],
    size: Size = (720, 480),
    frames: int = 49,
    t5: str = T5,
    steps: int = 50,
) -> Flow:
    """names: (file, strength, fuse_lora) in the wrapper's order."""
    flow, chain = Flow(), None
    for name, strength, fuse in names:
        chain = (flow.add("CogVideoLoraSelect", name, strength, fuse, prev_lora=chain), 0)
    loader = flow.loader(model, lora=chain)
    sampled = flow.sample(loader, flow.prompts(t5=t5), frames, steps, samples=flow.empty(*size))
    flow.save(sampled, (loader, 1))
    return flow


def context_windows(
    model: str,
    size: Size = (720, 480),
    frames: int = 81,
    t5: str = T5,
    steps: int = 25,
    window: int = 48,
    scheduler: str = "CogVideoXDDIM",
) -> Flow:
    flow = Flow()
    loader = flow.loader(model)
    options = (flow.add("CogVideoContextOptions", "uniform_standard", window, 4, 8, True), 0)
    sampled = flow.sample(
        loader, flow.prompts(t5=t5), frames, steps, scheduler, samples=flow.empty(*size), context_options=options
    )
    flow.save(sampled, (loader, 1))
    return flow


def tora(model: str = "THUDM/CogVideoX-5b-I2V") -> Flow:
    flow = Flow()
    loader = flow.loader(model)
    picture = flow.picture(720, 480)
    if "InP" in model:
        sockets = {"vae": (loader, 1), "start_image": picture, "end_image": None}
        image: Slot = (flow.add("CogVideoImageEncodeFunInP", 49, True, 0.03, **sockets), 0)
    else:
        image = flow.encode((loader, 1), picture)
    sockets = {
        "tora_model": (flow.add("DownloadAndLoadToraModel", "kijai/CogVideoX-5b-Tora"), 0),
        "vae": (loader, 1),
        "coordinates": (flow.add("SplineEditor"), 1),
    }
    trajectory = (flow.add("ToraEncodeTrajectory", "", 720, 480, 49, 1, 0, 1, True, **sockets), 0)
    sampled = flow.sample(loader, flow.prompts(), image_cond_latents=image, tora_trajectory=trajectory)
    flow.save(sampled, (loader, 1))
    return flow


def noise_warp(model: str = "THUDM/CogVideoX-5b-I2V") -> Flow:
    """Go-with-the-Flow: warped noise is given as the samples at strength 1."""
    flow = Flow()
    loader = flow.loader(model)
    image = flow.encode((loader, 1), flow.picture(720, 480))
    noise = (flow.add("GetWarpedNoiseFromVideo", 16), 0)
    sampled = flow.sample(loader, flow.prompts(), samples=noise, image_cond_latents=image)
    flow.save(sampled, (loader, 1))
    return flow


ORBIT = "DimensionX_orbit_left_lora_rank256_bf16.safetensors"
# name -> how it is built; options such as size and t5 make it smaller for a run
TWELVE: dict[str, Callable[..., Flow]] = {
    "t2v_2b": lambda **o: text_to_video("THUDM/CogVideoX-2b", **o),
    "t2v_5b_dpm": lambda **o: text_to_video(
        "THUDM/CogVideoX-5b", quantization="fp8_e4m3fn", scheduler="CogVideoXDPMScheduler", **o
    ),
    "t2v_1.5": lambda size=(1360, 768), frames=81, **o: text_to_video("kijai/CogVideoX-5b-1.5-T2V", size, frames, **o),
    "i2v_5b": lambda **o: image_to_video("THUDM/CogVideoX-5b-I2V", **o),
    "i2v_1.5": lambda size=(1360, 768), **o: image_to_video("kijai/CogVideoX-5b-1.5-I2V", size, **o),
    "v2v_5b": lambda **o: video_to_video("THUDM/CogVideoX-5b", **o),
    "fun_inpaint": lambda **o: fun_inpaint("alibaba-pai/CogVideoX-Fun-V1.1-5b-InP", **o),
    "fun_control": lambda **o: fun_control("alibaba-pai/CogVideoX-Fun-V1.1-5b-Pose", **o),
    "control_net": lambda **o: control_net("THUDM/CogVideoX-2b", **o),
    "lora": lambda **o: loras("THUDM/CogVideoX-5b", [("style.safetensors", 0.8, False), (ORBIT, 1, True)], **o),
    "context_windows": lambda **o: context_windows("THUDM/CogVideoX-5b", **o),
    "tora": lambda **o: tora(),
}
# The wrapper's own examples, by their files' names. Of its fourteen, cut_and_drag_for_noisewarp_01 has no node of it,
# and vid2vid_02 is there twice.
_INP = "alibaba-pai/CogVideoX-Fun-V1.1-5b-InP"
EXAMPLES: dict[str, Callable[..., Flow]] = {
    "cogvideox_1_0_5b_T2V_02": lambda **o: text_to_video("THUDM/CogVideoX-5b", **o),
    "cogvideox_1_0_5b_I2V_02": TWELVE["i2v_5b"],
    "cogvideox_1_5_5b_I2V_01": TWELVE["i2v_1.5"],
    "cogvideox_1_0_5b_interpolation_02": lambda **o: image_to_video(
        "feizhengcong/CogvideoX-Interpolation", ends=True, **o
    ),
    "cogvideox_1_0_5b_vid2vid_02": TWELVE["v2v_5b"],
    "cogvideox_1_0_2b_controlnet_02": TWELVE["control_net"],
    "cogvideox_Fun_I2V_02": lambda **o: fun_inpaint(_INP, ends=False, **o),
    "cogvideox_Fun_pose_02": TWELVE["fun_control"],
    "cogvideox_Fun_180_orbit_02": lambda **o: fun_inpaint(_INP, ends=False, lora=ORBIT, **o),
    "cogvideox_1_0_5b_I2V_noise_warp_01": lambda **o: noise_warp(),
    "cogvideox_1_0_5b_I2V_Tora_02": TWELVE["tora"],
    "cogvideox_Fun_I2V_Tora": lambda **o: tora(_INP),
}

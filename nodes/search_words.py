"""Under which other words each node is found: what people type, what the wrapper calls its nodes, and diffusers' names.

ComfyUI's search compares what is typed with a node's id, its title and these words. Nodes that have it in their id or
title come first, whatever these words are; among the others a word that is equal to what was typed comes first. Each
word is compared from its beginning and by itself, so that a name in one piece stays in one piece.
"""

# ComfyUI-CogVideoXWrapper's nodes, and which nodes here do their work. Those without a counterpart are not here: who
# searches for one should not be led to a node that does something else.
_OF_THE_WRAPPER = {
    "CogVideoXLoadPipeline": ["DownloadAndLoadCogVideoModel"],
    "CogVideoXLoadModel": ["CogVideoXModelLoader", "DownloadAndLoadCogVideoGGUFModel"],
    "CogVideoXLoadVAE": ["CogVideoXVAELoader"],
    "CogVideoXLoadControlNet": ["DownloadAndLoadCogVideoControlNet"],
    "CogVideoXDownload": ["DownloadAndLoadCogVideoModel"],
    "CogVideoXApplyLora": ["CogVideoLoraSelect", "CogVideoLoraSelectComfy"],
    "CogVideoXEncodeText": ["CogVideoTextEncode"],
    "CogVideoXImageToVideo": ["CogVideoImageEncode"],
    "CogVideoXEncodeVideo": ["CogVideoImageEncode"],
    "CogVideoXFunInpaint": ["CogVideoImageEncodeFunInP"],
    "CogVideoXApplyControlNet": ["CogVideoControlNet"],
    "CogVideoXSample": ["CogVideoSampler"],
    "CogVideoXContextWindows": ["CogVideoContextOptions"],
    "CogVideoXDecode": ["CogVideoDecode"],
}
_OF_DIFFUSERS = {
    "CogVideoXLoadPipeline": ["CogVideoXPipeline", "from_pretrained"],
    "CogVideoXLoadModel": ["CogVideoXTransformer3DModel"],
    "CogVideoXLoadTextEncoder": ["T5EncoderModel"],
    "CogVideoXLoadVAE": ["AutoencoderKLCogVideoX"],
    "CogVideoXApplyLora": ["load_lora_weights"],
    "CogVideoXEncodeText": ["encode_prompt"],
    "CogVideoXImageToVideo": ["CogVideoXImageToVideoPipeline"],
    "CogVideoXEncodeVideo": ["CogVideoXVideoToVideoPipeline"],
    "CogVideoXFunControl": ["CogVideoXFunControlPipeline"],
    "CogVideoXSample": ["num_inference_steps", "guidance_scale"],
    "CogVideoXScheduler": ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"],
    "CogVideoXSampler": ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"],
    "CogVideoXTimesteps": ["set_timesteps"],
    "CogVideoXDynamicCFG": ["use_dynamic_cfg", "rescale_noise_cfg"],
    "CogVideoXDecodeToFile": ["export_to_video"],
}
_TYPED = {
    "CogVideoXMemoryForecast": ["vram", "memory", "out of memory", "oom", "which settings", "my gpu", "low vram"],
    "CogVideoXLoadPipeline": ["diffusers loader", "checkpoint loader", "load checkpoint", "text to video"],
    "CogVideoXLoadModel": ["unet loader", "diffusion model", "transformer", "gguf loader", "fp8"],
    "CogVideoXLoadTextEncoder": ["clip loader", "t5 loader", "t5xxl"],
    "CogVideoXLoadVAE": ["vae loader"],
    "CogVideoXLoadControlNet": ["controlnet loader", "control net", "canny", "hed", "depth"],
    "CogVideoXExample": ["sample picture", "sample video", "demo", "toy", "nano"],
    "CogVideoXOwnImage": ["upload image", "optional image", "image or default", "fallback image"],
    "CogVideoXDownload": ["fetch", "checkpoint", "weights", "hugging face", "modelscope", "mirror"],
    "CogVideoXSaveModel": ["convert", "quantize", "merge lora", "export"],
    "CogVideoXApplyLora": [
        "apply lora",
        "lora loader",
        "LoraLoaderModelOnly",
        "DimensionX",
        "style",
        "camera motion",
        "dora",
        "lycoris",
    ],
    "CogVideoXSaveLora": ["convert lora", "merge loras", "export lora", "diffusers lora"],
    "CogVideoXEncodeText": ["prompt", "text encode", "clip text encode", "t5"],
    "CogVideoXEmptyLatent": ["empty video latent", "empty latent video", "video size", "frames"],
    "CogVideoXImageToVideo": ["i2v", "img2vid", "start image", "first frame", "end image"],
    "CogVideoXEncodeVideo": ["v2v", "vid2vid", "video to video", "vae encode"],
    "CogVideoXFunInpaint": ["inp", "fun i2v", "inpaint video", "start end frame", "first last frame"],
    "CogVideoXFunControl": ["pose", "canny", "depth", "control video"],
    "CogVideoXApplyControlNet": ["controlnet", "control net", "apply controlnet", "canny", "hed", "depth"],
    "CogVideoXContinueVideo": ["extend video", "longer video", "long video", "overlap", "last frame"],
    "CogVideoXJoinVideos": ["concatenate videos", "extend video", "append", "cross-fade"],
    "CogVideoXSample": ["video sampler", "ksampler", "text to video", "t2v", "ddim", "dpm"],
    "CogVideoXSampler": ["sampler select", "ksampler select", "ddim", "dpm"],
    "CogVideoXScheduler": ["sigmas", "basic scheduler", "trailing", "zero terminal snr"],
    "CogVideoXTimesteps": [
        "few steps",
        "distilled",
        "manual sigmas",
        "custom sigmas",
        "TDM",
        "BLADE",
        "turbo",
        "4-step",
    ],
    "CogVideoXNoise": ["random noise", "seed"],
    "CogVideoXDynamicCFG": ["guidance", "guidance rescale", "cfg guider"],
    "CogVideoXStepCache": ["easycache", "teacache", "magcache", "first block cache", "faster", "skip steps"],
    "CogVideoXCompile": ["torch.compile", "inductor", "triton", "faster", "TorchCompileModel"],
    "CogVideoXParallel": ["multi gpu", "multigpu", "several cards", "xdit", "ulysses", "sequence parallel", "ray"],
    "CogVideoXContextWindows": ["long video", "freenoise", "context options"],
    "CogVideoXPositions": ["riflex", "long video", "resolution"],
    "CogVideoXInvert": ["ddim inversion", "video to noise", "unsample", "edit video"],
    "CogVideoXFollowVideo": ["ddim inversion", "edit video", "attention sharing", "reference video"],
    "CogVideoXDecode": ["vae decode", "latent to video"],
    "CogVideoXDecodeToFile": [
        "save video",
        "vae decode",
        "mp4",
        "webm",
        "long video",
        "low memory",
        "out of memory",
    ],
    "CogVideoXDraftDecode": ["taecvx", "taehv", "tiny vae", "taesd", "preview"],
    "CogVideoXTrainingClips": [
        "dataset",
        "finetune",
        "fine-tune",
        "lora training",
        "captions",
        "make training dataset",
    ],
    "CogVideoXTrainLora": ["finetune", "fine-tune", "train lora", "dreambooth", "training"],
    "CogVideoXSaveTrainedLora": ["save lora", "export lora", "save lora weights", "diffusers lora"],
}
# What people type with the model's name before it, as in "cogvideox t2v" or "cog vae decode", where no id or title has
# all of it: the search compares one of a node's words with all that was typed.
_AFTER_THE_NAME = {
    "CogVideoXMemoryForecast": ["vram"],
    "CogVideoXLoadPipeline": ["checkpoint loader", "pipeline loader"],
    "CogVideoXLoadModel": ["unet loader", "gguf loader", "transformer"],
    "CogVideoXLoadTextEncoder": ["clip loader", "t5"],
    "CogVideoXEncodeText": ["prompt", "clip text encode"],
    "CogVideoXImageToVideo": ["i2v", "start image"],
    "CogVideoXEncodeVideo": ["v2v", "vid2vid"],
    "CogVideoXSample": ["t2v", "video sampler", "ksampler"],
    "CogVideoXStepCache": ["teacache"],
    "CogVideoXPositions": ["riflex"],
    "CogVideoXDecode": ["vae decode"],
    "CogVideoXTrainingClips": ["dataset"],
    "CogVideoXTrainLora": ["finetune"],
}


def _search_words(node: str) -> list[str]:
    named = [f"CogVideoX {word}" for word in _AFTER_THE_NAME.get(node, [])]
    return [*_TYPED[node], *named, *_OF_DIFFUSERS.get(node, []), *_OF_THE_WRAPPER.get(node, [])]


# For search_aliases of each node's schema.
SEARCH_WORDS: dict[str, list[str]] = {node: _search_words(node) for node in _TYPED}

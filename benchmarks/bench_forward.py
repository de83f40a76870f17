"""One forward and a whole sampling run: ours, diffusers' pipeline and ComfyUI's native class on the same weights."""

import gc
import re
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

from cogvideox.benchmarks.common import (
    Table,
    arguments,
    interleave,
    median_spread,
    ratio,
    report,
    use_comfyui,
)
from cogvideox.devtools.embedded_checkpoint import build_transformer, scheduler_config

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# Latent (T, H, W); each gives 1320 video tokens, and 226 text tokens come before them.
SIZES = {"2b": (4, 30, 44), "5b": (4, 30, 44), "1.5-5B": (8, 30, 44)}
PRECISIONS = {
    "fp32": "fp32",
    "bf16 stored": "weight_dtype bf16: ComfyUI stores bf16 and computes in fp32 on a CPU; diffusers computes in bf16",
    "bf16": "computed in bf16, as on a GPU: ComfyUI's rule against it on CPUs is overruled for ours and native",
}
NATIVE_NAMES = (
    (r"^transformer_blocks\.", "blocks."),
    (r"\.attn1\.to_([qkv])\.", r".\1."),
    (r"\.attn1\.norm_([qk])\.", r".norm_\1."),
    (r"\.attn1\.to_out\.0\.", ".attn_out."),
    (r"\.ff\.net\.0\.proj\.", ".ff_proj."),
    (r"\.ff\.net\.2\.", ".ff_out."),
    (r"^(time|ofs)_embedding\.linear_", r"\1_embedding_linear_"),
)
SEED, CFG = 5, 6.0
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # latents [1, 16, T, H, W], text [1, 226, width], timestep [1]


@dataclass(frozen=True)
class Models:
    """The same weights in each implementation. native: ComfyUI's own class."""

    ours: "ModelPatcher"
    diffusers: CogVideoXPipeline
    native: "ModelPatcher"


def main() -> None:
    options = arguments(
        __doc__,
        layers={"type": int, "default": 2},
        heads={"type": int, "default": 16, "help": "of 64 each"},
        steps={"type": int, "default": 2, "help": "of a sampling run, with CFG"},
        repeats={"type": int, "default": 5, "help": "of a forward; a run is repeated 3 times at most"},
        variants={"nargs": "+", "choices": list(SIZES), "default": list(SIZES)},
        precisions={"nargs": "+", "choices": list(PRECISIONS), "default": list(PRECISIONS)},
    )
    use_comfyui()
    forwards, runs = [], []
    for variant in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), variant, options.layers, options.heads)
            exact = load_diffusers(Path(folder), variant, "fp32")
            inputs = make_inputs(variant, exact.transformer.config)
            shorter = (inputs[0][:, :, : SIZES[variant][0] // 2], *inputs[1:])
            forward, run = forward_diffusers(exact, *inputs), run_diffusers(exact, *shorter[:2], options.steps)
            for precision in options.precisions:
                models = load_all(Path(folder), variant, precision)
                forwards.append([variant, precision, *compare_forward(models, inputs, forward, options.repeats)])
                print("forward", *forwards[-1], flush=True)
                if precision != "bf16 stored":
                    runs.append([variant, precision, *compare_run(models, shorter, run, options)])
                    print("run", *runs[-1], flush=True)
                del models
                gc.collect()
            del exact
    report("forward", tables(options, forwards, runs), options.save)


def tables(options: Namespace, forwards: list[list[str]], runs: list[list[str]]) -> list[Table]:
    size = f"{options.layers} layers, {options.heads} heads of 64, {', '.join(f'{v} {s}' for v, s in SIZES.items())}"
    notes = [
        f"{size} (latent frames, height, width); random weights, the same in all columns.",
        "Times are medians (least - most); ratios are of medians, below 1 ours is faster.",
        "native: ComfyUI's class for CogVideoX as ComfyUI starts it on a CPU (sub-quadratic attention); native SDPA: "
        "the same with torch's attention. It is numerically different for official checkpoints, hence its errors.",
        *(f"{name}: {text}." for name, text in PRECISIONS.items() if name in options.precisions and name != text),
    ]
    forward_columns = ["ours", "diffusers", "native", "native SDPA"]
    forward_columns += ["ours / diffusers", "ours / native", "ours / native SDPA"]
    forward_columns += ["error ours", "error diffusers", "error native"]
    forward_note = "Errors are RMS over RMS against diffusers in fp32."
    run_notes = [
        f"{options.steps} steps with CFG {CFG} on half the latent frames; ours through CogVideoXSample, native through "
        "stock KSampler (euler, sgm_uniform), which is another sampler: only its time compares.",
        "Errors are of the final latents, against diffusers in fp32 from the same seed.",
    ]
    run_columns = ["ours", "diffusers", "native", "ours / diffusers", "ours / native", "error ours", "error diffusers"]
    return [
        Table("One forward, batch 1", [*notes, forward_note], ["variant", "precision", *forward_columns], forwards),
        Table("A sampling run", run_notes, ["variant", "precision", *run_columns], runs),
    ]


def write_checkpoint(folder: Path, variant: str, layers: int, heads: int) -> None:
    """Write the transformer of a pipeline in fp32, `heads` x 64 wide; its text is 512 wide."""
    frames, height, width = SIZES[variant]
    sample = {"sample_frames": 4 * frames - 3, "sample_height": height, "sample_width": width}
    if variant.startswith("1.5"):
        sample = {"sample_frames": 81, "sample_height": 300, "sample_width": 300}
    wide = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 64}
    wide |= {"text_embed_dim": 512, "time_embed_dim": 512}
    generator = torch.Generator().manual_seed(0)
    build_transformer(variant, generator, **wide, **sample).save_pretrained(folder / "transformer")


def make_inputs(variant: str, config: Any) -> Inputs:
    """Seeded inputs of one forward. config: of diffusers' transformer."""
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(1, config.in_channels, *SIZES[variant], generator=generator)
    return latents, torch.randn(1, 226, config.text_embed_dim, generator=generator), torch.tensor([700])


def load_all(folder: Path, variant: str, precision: str) -> Models:
    """Load the transformer in `folder` with each implementation."""
    import comfy.model_management as mm

    from cogvideox.model_loaders.load_model import load_model

    forced = mock.patch.object(mm, "should_use_bf16", lambda *a, **k: True) if precision == "bf16" else nullcontext()
    with forced:
        ours = load_model(folder, "fp32" if precision == "fp32" else "bf16")
        native = load_native(folder, precision)
        mm.load_models_gpu([ours, native])
    return Models(ours, load_diffusers(folder, variant, precision), native)


def load_diffusers(folder: Path, variant: str, precision: str) -> CogVideoXPipeline:
    """diffusers' pipeline of the transformer in `folder` alone, without text encoder and VAE."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    transformer = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype).eval()
    scheduler = CogVideoXDDIMScheduler(**scheduler_config(variant))
    absent: Any = None  # text encoder and VAE: runs are given embeddings and return latents
    pipeline = CogVideoXPipeline(absent, absent, absent, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_native(folder: Path, precision: str) -> "ModelPatcher":
    """ComfyUI's own loader on the same weights under the names it knows."""
    import comfy.sd
    import comfy.utils

    def native_name(name: str) -> str:
        for pattern, replacement in NATIVE_NAMES:
            name = re.sub(pattern, replacement, name)
        return name

    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    stored: Any = comfy.utils.load_torch_file(str(file))
    weights = {native_name(name): weight.to(dtype) for name, weight in stored.items()}
    patcher = comfy.sd.load_diffusion_model_state_dict(weights, {"dtype": dtype})
    assert patcher is not None, "ComfyUI no longer recognises CogVideoX under its own names."
    return patcher


def forward_diffusers(
    pipeline: CogVideoXPipeline, latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """diffusers' transformer as its pipeline calls it; returns [B, C, T, H, W] in fp32."""
    model = pipeline.transformer
    rotary = None
    if model.config.use_rotary_positional_embeddings:
        _, _, frames, height, width = latents.shape
        with_geometry: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=model)
        rotary = type(pipeline)._prepare_rotary_positional_embeddings(
            with_geometry, height * 8, width * 8, frames, latents.device
        )
    dtype = model.dtype
    with torch.inference_mode():
        call = {"image_rotary_emb": rotary, "return_dict": False}
        return model(latents.transpose(1, 2).to(dtype), text.to(dtype), timestep, **call)[0].transpose(1, 2).float()


def forward_comfy(
    patcher: "ModelPatcher", latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """A diffusion model as ComfyUI's BaseModel calls it; returns [B, C, T, H, W] in fp32."""
    dtype = patcher.model.get_dtype_inference()
    with torch.inference_mode():
        return patcher.model.diffusion_model(
            latents.to(dtype), timestep.to(dtype), context=text.to(dtype), transformer_options={}
        ).float()


def with_sdpa(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """`call` while ComfyUI's native class uses torch's scaled_dot_product_attention."""
    import comfy.ldm.cogvideo.model
    import comfy.ldm.modules.attention as attention

    def run() -> torch.Tensor:
        with mock.patch.object(comfy.ldm.cogvideo.model, "optimized_attention", attention.attention_pytorch):
            return call()

    return run


def compare_forward(models: Models, inputs: Inputs, reference: torch.Tensor, repeats: int) -> list[str]:
    """The cells of a row: times, ratios, and errors against `reference`."""
    calls = {
        "ours": lambda: forward_comfy(models.ours, *inputs),
        "diffusers": lambda: forward_diffusers(models.diffusers, *inputs),
        "native": lambda: forward_comfy(models.native, *inputs),
    }
    calls["native SDPA"] = with_sdpa(calls["native"])
    errors = [relative_error(calls[name](), reference) for name in ("ours", "diffusers", "native")]
    return timing_cells(interleave(calls, repeats)) + [f"{error:.1e}" for error in errors]


def compare_run(models: Models, inputs: Inputs, reference: torch.Tensor, options: Namespace) -> list[str]:
    """The cells of a row: times, ratios, and errors of the final latents against `reference`."""
    import comfy.sample

    from cogvideox.nodes.sample import CogVideoXSample

    latents, text, _ = inputs
    positive, negative, empty = [[text, {}]], [[-text, {}]], torch.zeros_like(latents)

    def ours() -> torch.Tensor:
        settings = SEED, options.steps, CFG, "ddim", False, 1.0
        out = CogVideoXSample.execute(models.ours, positive, negative, {"samples": empty}, *settings)
        return models.ours.model.process_latent_in(out.args[0]["samples"])

    def native() -> torch.Tensor:
        noise = comfy.sample.prepare_noise(empty, SEED)
        how = CFG, "euler", "sgm_uniform", positive, negative, empty
        return comfy.sample.sample(models.native, noise, options.steps, *how, disable_pbar=True, seed=SEED)

    calls = {
        "ours": ours,
        "diffusers": lambda: run_diffusers(models.diffusers, latents, text, options.steps),
        "native": native,
    }
    with torch.inference_mode(), mock.patch("comfy.utils.PROGRESS_BAR_ENABLED", False):
        errors = [relative_error(calls[name](), reference) for name in ("ours", "diffusers")]
        cells = timing_cells(interleave(calls, min(3, options.repeats), warmup=0))
    return cells + [f"{error:.1e}" for error in errors]


def run_diffusers(pipeline: CogVideoXPipeline, latents: torch.Tensor, text: torch.Tensor, steps: int) -> torch.Tensor:
    """diffusers' pipeline from SEED, for latents of this shape; returns its final latents, [B, C, T, H, W] in fp32."""
    _, _, frames, height, width = latents.shape
    dtype = pipeline.transformer.dtype
    run: Any = pipeline  # diffusers annotates FloatTensor where it takes any Tensor
    with torch.inference_mode():
        out = run(
            prompt_embeds=text.to(dtype),
            negative_prompt_embeds=-text.to(dtype),
            height=height * 8,
            width=width * 8,
            num_frames=4 * frames - 3,
            num_inference_steps=steps,
            guidance_scale=CFG,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        )
    return out.frames.transpose(1, 2).float()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """RMS of the difference over RMS of the reference."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def timing_cells(seconds: dict[str, list[float]]) -> list[str]:
    ratios = [ratio(seconds["ours"], seconds[name]) for name in seconds if name != "ours"]
    return [*(median_spread(values) for values in seconds.values()), *ratios]


if __name__ == "__main__":
    main()

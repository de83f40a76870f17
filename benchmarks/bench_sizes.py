"""What the official models weigh and what one step takes, counted on shapes: no weights, no clock, a few seconds."""

import math
from typing import Any

import torch

from cogvideox.benchmarks.bench_traffic import TEXT_TOKENS, TEXT_WIDTH, latent_inputs, our_forward, torch_attention
from cogvideox.benchmarks.common import Table, arguments, report, use_comfyui
from cogvideox.benchmarks.traffic import count_peak
from cogvideox.benchmarks.traffic_kernels import no_stand_in

GB, GIB = 10**9, 1 << 30
CARDS = (8, 12, 16, 24)  # GB, the common sizes
SPARE = 3.0  # GiB that CUDA, ComfyUI and the desktop may take of a card
# name -> latents (T, H, W) of 49 frames of 720 x 480, and of 81 (and the frame before them) of 1360 x 768
MODELS = {
    "CogVideoX-2b": (13, 60, 90),
    "CogVideoX-5b": (13, 60, 90),
    "CogVideoX-5b-I2V": (13, 60, 90),
    "CogVideoX1.5-5B": (22, 96, 170),
    "CogVideoX1.5-5B-I2V": (22, 96, 170),
}
ROWS_SCALE_BYTES = 4  # int8 has one fp32 scale for each row of a matrix
LATENT_CHANNELS = 16
VIDEOS = {"49 frames, 480 x 720": (13, 60, 90), "81 frames, 768 x 1360": (21, 96, 170)}
IMAGE = (161, 768, 1360)  # frames of CogVideoX 1.5 at its longest


def main() -> None:
    options = arguments(__doc__)
    use_comfyui(cpu=True)
    report("sizes", [weights_table(), step_table(), vae_table(), data_table()], options.save)


def weights_table() -> Table:
    from cogvideox.model_loaders.precision import is_t5_matrix
    from cogvideox.tests import hollow_files as hollow
    from cogvideox.transformer.parameter_types import is_block_matrix

    parts = {name: (hollow.official_weights(name), is_block_matrix) for name in MODELS}
    parts |= {"T5": (hollow.official_t5(), is_t5_matrix), "VAE": (hollow.official_vae(), lambda name: False)}
    rows = []
    for name, (weights, is_matrix) in parts.items():
        parameters = sum(weight.numel() for key, weight in weights.items() if not key.endswith("pos_embedding"))
        plain = 2 * parameters
        matrices = [weight for key, weight in weights.items() if is_matrix(key)]
        eight = plain - sum(weight.numel() - ROWS_SCALE_BYTES * weight.shape[0] for weight in matrices)
        sizes = [f"{size / unit:.3f}" for size in (plain, eight) for unit in (GIB, GB)]
        rows.append([name, str(parameters), *(sizes if matrices else [*sizes[:2], "", ""])])
    notes = (
        "Parameters times the bytes of each. 8 bits: int8, the matrices of the blocks in one byte and a scale for each "
        "row; the rest in 16 bits.",
    )
    header = ("model", "parameters", "16 bits, GiB", "16 bits, GB", "8 bits, GiB", "8 bits, GB")
    return Table("Weights", notes, header, rows)


def step_table() -> Table:
    weights = {row[0]: row for row in weights_table().rows}
    rows = []
    for name, latents in MODELS.items():
        step = step_bytes(name, latents) / GIB
        both = [float(weights[name][column]) + step for column in (2, 4)]
        cards = [str(next(card for card in CARDS if card >= size + SPARE)) for size in both]
        rows.append([name, f"{step:.3f}", *(f"{size:.2f}" for size in both), *cards])
    notes = (
        "The peak of a step's tensors in bf16, prompt and negative prompt in one batch, with an attention kernel that "
        "allocates its result alone. Both: the step and the weights, in 16 and in 8 bits.",
        f"Card: the smallest of {', '.join(map(str, CARDS))} GB that holds both with {SPARE:g} GiB to spare.",
    )
    header = ("model", "step, GiB", "both, GiB", "both, 8 bits", "card, GB", "card, 8 bits")
    return Table("One step", notes, header, rows)


def step_bytes(name: str, latents: tuple[int, int, int]) -> int:
    """The peak of a forward of the official model, counted as `bench traffic` does, with comfy-kitchen's rotation."""
    from cogvideox.tests.hollow_files import OFFICIAL

    config = dict(OFFICIAL[name]) | ({} if "2b" in name else {"num_layers": 42, "num_attention_heads": 48})
    side = {"sample_width": 300, "sample_height": 300} if "1.5" in name else {"sample_width": 90, "sample_height": 60}
    inputs = latent_inputs(latents, 2, config.get("in_channels", LATENT_CHANNELS))
    dit, forward = our_forward(config | side, *inputs)
    with torch_attention():
        return count_peak(forward, [*dit.parameters(), *dit.buffers()], no_stand_in)


def vae_table() -> Table:
    """What bench_vae's modes are beside."""
    from diffusers import AutoencoderKLCogVideoX

    from cogvideox.tests.peak_bytes import PeakBytes

    with torch.device("meta"):
        network: Any = torch.nn.Module.to(AutoencoderKLCogVideoX(), torch.bfloat16).eval()
    rows = []
    for name, latents in VIDEOS.items():
        z = torch.empty(1, LATENT_CHANNELS, *latents, device="meta", dtype=torch.bfloat16)
        with torch.inference_mode(), PeakBytes() as used:
            network.decode(z)
        rows.append([name, f"{used.peak / GIB:.1f}"])
    notes = ("The peak of the tensors of a decode in bf16, without the weights and without tiles.",)
    return Table("The VAE of diffusers", notes, ("video", "decode, GiB"), rows)


def data_table() -> Table:
    frames, height, width = IMAGE
    clip, long_clip = (LATENT_CHANNELS * math.prod(latents) for latents in ((13, 60, 90), (21, 96, 170)))
    width_5b, inner_5b = 3072, 12288
    attention, feed_forward = 4 * (width_5b + width_5b), 2 * (width_5b + inner_5b)  # of a rank, in and out
    rows = [
        [f"an IMAGE of {frames} frames of {width} x {height}", f"{frames * height * width * 3 * 4 / GB:.2f} GB"],
        ["a training clip of 49 frames of 720 x 480, mean and deviation, bf16", f"{2 * 2 * clip / 10**6:.1f} MB"],
        ["an inverted video, 50 steps, 49 frames of 720 x 480", f"{50 * 4 * clip / GB:.2f} GB"],
        ["an inverted video, 50 steps, 81 frames of 1360 x 768", f"{50 * 4 * long_clip / GB:.2f} GB"],
        ["a LoRA with the feed-forward layers, over one without", f"{(attention + feed_forward) / attention:.2f}"],
        ["a caption, fp16", f"{2 * TEXT_TOKENS * TEXT_WIDTH / 10**6:.2f} MB"],
    ]
    return Table("Data", (), ("what", "size"), rows)


if __name__ == "__main__":
    main()

"""What the card and its libraries can do at the model's own shapes: the floor of every other figure."""

import platform
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from cogvideox.benchmarks.gpu_models import BACKENDS, attention_flops
from cogvideox.benchmarks.gpu_rows import MISSING, Bench, relative_error, seconds_of, spread

TOKENS = 35552  # of 5b, batch 2
PRODUCTS = ((3072, 3072), (3072, 12288), (12288, 3072))  # (in, out) of attention and feed-forward
ATTENTIONS = {"5b": (2, 48, 17776), "1.5, 81 frames": (2, 48, 45106)}
CHECKED_QUERIES = 64
PREDICTED = {"FLASH": "324 TFLOP/s", "CUDNN": "413 TFLOP/s", "EFFICIENT": "below FLASH"}


def measure(bench: Bench) -> None:
    """The section."""
    bench.start_comfyui()
    bench.attempt("versions", lambda: versions(bench))
    bench.attempt("copy", lambda: copies(bench))
    for shape in PRODUCTS:
        bench.attempt(f"product {shape}", lambda shape=shape: product(bench, *shape))
    for name, shape in ATTENTIONS.items():
        bench.attempt(f"attention {name}", lambda name=name, shape=shape: attention(bench, name, shape))
    bench.attempt("RoPE", lambda: rope(bench))


def versions(bench: Bench) -> None:
    import comfy.ldm.modules.attention as comfy_attention
    import comfy.model_management as mm
    import diffusers
    import transformers

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "attention of ComfyUI": comfy_attention.optimized_attention.__name__,
        "vram state": mm.vram_state.name,
        "comfy-kitchen": kitchen_backends(),
    }
    if bench.on_card:
        found["card"] = torch.cuda.get_device_name()
        found["memory free and in all"] = torch.cuda.mem_get_info()
    with suppress(Exception):
        import triton

        found["triton"] = triton.__version__
    with suppress(Exception):  # newer versions of torch can be given other kernels under the name FLASH
        found["flash implementations"] = torch.nn.attention.list_flash_attention_impls()  # pyright: ignore
    bench.row("versions", ", ".join(f"{name} {value}" for name, value in found.items()), **found)


def kitchen_backends() -> str:
    """The backends of comfy-kitchen that work here."""
    try:
        import comfy_kitchen

        listed: Any = comfy_kitchen.list_backends()
        return ", ".join(name for name, state in listed.items() if state.get("available") and not state.get("disabled"))
    except Exception as error:
        return f"none ({type(error).__name__}: {error})"


def copies(bench: Bench) -> None:
    """Bytes read plus bytes written."""
    count = 1 << 16 if bench.smoke else 1 << 30
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    times = seconds_of(bench, {"copy": lambda: target.copy_(source)}, 20, warm=3)["copy"]
    rate = 2 * count / min(times)
    bench.row("copy on the card", f"{rate / 1e12:.2f} TB/s", predicted="3.0 TB/s", bytes_per_s=rate)
    host = torch.empty(count // 4, dtype=torch.uint8, pin_memory=bench.on_card)
    times = seconds_of(bench, {"up": lambda: target[: count // 4].copy_(host, non_blocking=True)}, 5)["up"]
    rate = count / 4 / min(times)
    bench.row("copy from pinned memory", f"{rate / 1e9:.1f} GB/s", predicted="25 to 55 GB/s", bytes_per_s=rate)


def product(bench: Bench, inner: int, outer: int) -> None:
    tokens = 64 if bench.smoke else TOKENS
    inner, outer = (inner // 64, outer // 64) if bench.smoke else (inner, outer)
    x = torch.randn(tokens, inner, device=bench.device, dtype=torch.bfloat16)
    weight = torch.randn(outer, inner, device=bench.device, dtype=torch.bfloat16) * inner**-0.5
    bias = torch.randn(outer, device=bench.device, dtype=torch.bfloat16)
    times = seconds_of(bench, {"product": lambda: F.linear(x, weight, bias)}, 20, warm=3)["product"]
    rate = 2 * tokens * inner * outer / sorted(times)[len(times) // 2]
    what = f"product {tokens} x {inner} x {outer}, bf16"
    bench.row(what, f"{rate / 1e12:.0f} TFLOP/s", predicted="750 TFLOP/s", flops_per_s=rate)


def attention(bench: Bench, name: str, shape: tuple[int, int, int]) -> None:
    """torch's attention by each of its kernels; the error is of the first queries, against fp64."""
    batch, heads, tokens = (1, 2, 40) if bench.smoke else shape
    # [B, N, H, D] -> [B, H, N, D], as the transformer hands them over
    q, k, v = (
        torch.randn(batch, tokens, heads, 64, device=bench.device, dtype=torch.bfloat16).transpose(1, 2)
        for _ in range(3)
    )
    few = q[:1, :2, :CHECKED_QUERIES].double()
    exact = F.scaled_dot_product_attention(few, k[:1, :2].double(), v[:1, :2].double())
    flops = attention_flops(batch, heads, tokens)
    for backend, kernel in BACKENDS.items():

        def call(kernel: Any = kernel) -> torch.Tensor:
            if not bench.on_card:
                return F.scaled_dot_product_attention(q, k, v)
            with sdpa_kernel([kernel]):
                return F.scaled_dot_product_attention(q, k, v)

        def one(backend: str = backend, call: Callable[[], torch.Tensor] = call) -> None:
            error = relative_error(call()[:1, :2, :CHECKED_QUERIES], exact)
            times = seconds_of(bench, {backend: call}, 5)[backend]
            rate = flops / sorted(times)[len(times) // 2]
            found = f"{rate / 1e12:.0f} TFLOP/s, {spread(times)}, error {error:.1e}"
            predicted = PREDICTED[backend]
            bench.row(f"attention {name}, {backend}", found, predicted=predicted, flops_per_s=rate, error=error)

        bench.attempt(f"attention {name}, {backend}", one)


def rope(bench: Bench) -> None:
    """comfy-kitchen's rotation of queries by each of its backends that works here: 5b, batch 2."""
    import comfy_kitchen

    from cogvideox.host.compat import rotate_pairs

    batch, tokens, heads = (1, 40, 2) if bench.smoke else (2, 17776, 48)
    x = torch.randn(batch, tokens, heads, 64, device=bench.device, dtype=torch.bfloat16)
    angles = torch.rand(tokens, 1, 32, device=bench.device) * 6
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))[None]  # as positions.rotary_table
    bytes_moved = 2 * x.nbytes
    calls: dict[str, Callable[[], torch.Tensor]] = {"as the pack calls it": lambda: rotate_pairs(x.clone(), matrices)}
    for name, state in comfy_kitchen.list_backends().items():
        if not state.get("available"):
            bench.row(f"RoPE, {name}", str(state.get("unavailable_reason"))[:100], MISSING)
            continue
        if state.get("disabled"):
            comfy_kitchen.enable_backend(name)  # ComfyUI switches Triton's off unless it is started with an option
        calls[name] = lambda name=name: _rotated(comfy_kitchen, name, x, matrices)
    for name, call in calls.items():

        def one(name: str = name, call: Callable[[], torch.Tensor] = call) -> None:
            times = seconds_of(bench, {name: call}, 5)[name]
            rate = bytes_moved / min(times)
            found = f"{spread(times)}, {rate / 1e12:.2f} TB/s of one read and one write"
            bench.row(f"RoPE, {name}", found, predicted="0.15 ms fused, 0.9 ms eager", seconds=min(times))

        bench.attempt(f"RoPE, {name}", one)


def _rotated(kitchen: Any, backend: str, x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    with kitchen.use_backend(backend):
        return kitchen.apply_rope1(x, matrices)

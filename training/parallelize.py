"""All that several processes need: accelerate's set-up and its checks, FSDP, and tensors sharded over processes.

Nothing else in training/ knows how many processes there are. One process goes through the same functions.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, AutocastKwargs, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UserError

T = TypeVar("T")
_MIXED_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}  # accelerate's names
_TIMEOUT = timedelta(days=2)  # the other processes wait while the main one encodes the dataset
_BLOCK_CLASS = "CogVideoXBlock"  # what FSDP shards one by one
_UNSHARDABLE = ("fp8_e4m3fn", "int8")


def start_processes(on_cpu: bool) -> PartialState:
    """Join the processes that accelerate or torchrun has started, before a model is loaded: each gets its own card.

    Raises UserError where they do not find each other.
    """
    # accelerate has to be told of a CPU, or its processes stay alone
    state = PartialState(cpu=on_cpu, timeout=_TIMEOUT)
    started = int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != started:
        raise UserError(
            f"{started} processes were started and accelerate joins {state.num_processes}: they would write over each "
            "other. Start them with accelerate launch, as training/launch.py shows."
        )
    return state


def create_accelerator(dtype: torch.dtype, mode: str, weight_dtype: str = "default") -> Accelerator:
    """accelerate, for a model that computes in `dtype`, in the processes that start_processes has joined.

    mode: one of config.MODES. weight_dtype: how the frozen weights are stored.

    Raises UserError for what this trainer does not run under.
    """
    accelerator = _accelerator(dtype, mode, _device(PartialState()).type == "cpu", device_placement=True)
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else None
    if plugin is not None:
        if getattr(plugin, "fsdp_version", 1) != 2:
            raise UserError("FSDP's first version is not supported. Add --fsdp_version 2 to accelerate launch.")
        if weight_dtype in _UNSHARDABLE:
            raise UserError(
                f"model.weight_dtype is {weight_dtype}, which FSDP cannot shard. Use bf16, or train without FSDP: "
                "every process then holds the complete model."
            )
        shard_blocks(plugin)
    elif accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(f"{accelerator.distributed_type} is not supported. Use --multi_gpu, or FSDP.")
    return accelerator


@contextmanager
def single_process(dtype: torch.dtype, on_cpu: bool) -> Iterator[Accelerator]:
    """accelerate inside ComfyUI's process, for a LoRA on a model that ComfyUI has put where it belongs."""
    # accelerate keeps its precision for the process and would refuse the next training another one
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield _accelerator(dtype, "lora", on_cpu, device_placement=False)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def _accelerator(dtype: torch.dtype, mode: str, on_cpu: bool, device_placement: bool) -> Accelerator:
    # Under a LoRA the frozen weights are stored in the type that is computed in, and every layer casts by itself:
    # autocast would keep a second copy of each weight. A complete model in fp32 needs autocast.
    autocast = AutocastKwargs(enabled=mode == "full")
    return Accelerator(
        cpu=on_cpu,
        device_placement=device_placement,
        mixed_precision=_MIXED_PRECISION[dtype],
        kwargs_handlers=[autocast],
    )


def shard_blocks(plugin: Any) -> None:
    """Let accelerate's FSDP plugin shard the transformer block by block.

    Its own choice would wrap the patch embedding, of which the transformer calls single layers.
    """
    plugin.transformer_cls_names_to_wrap = [_BLOCK_CLASS]
    plugin.cpu_ram_efficient_loading = False  # every process maps the same file


def prepare(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, torch.optim.Optimizer]:
    """`model` and `optimizer` as accelerate wraps them: DistributedDataParallel, FSDP, mixed precision."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    # Each process has loaded the frozen weights itself, and quantised ones could not be sent. The name is torch's.
    ignored: Any = [name for name, tensor in tensors if not tensor.requires_grad]
    model._ddp_params_and_buffers_to_ignore = ignored
    if accelerator.distributed_type == DistributedType.FSDP:
        # accelerate looks there for a last norm to wrap, and would take norm_out, whose layers are called one by one
        prefix: Any = "none"
        model.base_model_prefix = prefix
    return accelerator.prepare(model, optimizer)


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process: all must leave the loop together."""
    if accelerator.num_processes == 1:
        return flag
    total: Any = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    return bool(total > 0)


def on_main_process(state: PartialState, work: Callable[[], T]) -> T:
    """What `work` returns, which the main process alone does and then sends to the others."""
    result: list[Any] = [work() if state.is_main_process else None]
    return broadcast_object_list(result)[0]


def gather_full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, complete where FSDP has sharded it. All processes have to call this."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).to("cpu", copy=True)


def copy_into_sharded(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Copy a complete tensor into one that FSDP may have sharded."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    return target.copy_(value)


def describe_processes(state: PartialState) -> str:
    """ "2 processes on cuda"."""
    return f"{state.num_processes} process{'es' * (state.num_processes > 1)} on {_device(state).type}"


def _device(state: PartialState) -> torch.device:
    return cast(torch.device, state.device)  # None only before it is initialized


def end_processes(state: PartialState) -> None:
    """Leave the process group, or torch warns at exit."""
    if state.num_processes > 1:
        torch.distributed.destroy_process_group()

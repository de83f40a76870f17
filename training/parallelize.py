"""What a training in several processes needs: accelerate's set-up and checks, FSDP, and tensors that it has sharded.

Nothing else in training/ depends on the number of processes; a single one goes through the same functions.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, AutocastKwargs, DistributedType, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UserError
from ..host.patches import own_states

T = TypeVar("T")
_MIXED_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}  # accelerate's names
# The other processes wait in a collective while the main one encodes the dataset, which can take longer than torch's
# timeout of minutes: they would abort in the middle of it.
_TIMEOUT = timedelta(days=2)
_BLOCK_CLASS = "CogVideoXBlock"  # the class of the modules that FSDP shards one by one
_UNSHARDABLE = ("fp8_e4m3fn", "int8")


def start_processes(on_cpu: bool) -> PartialState:
    """Join the processes that accelerate or torchrun has started, before a model is loaded: each gets its own card.

    Raises UserError where they do not find each other.
    """
    # Without a card accelerate joins processes only where cpu is set; otherwise each stays alone, a training of its own
    # with the same output folder (accelerate/state.py, PartialState._prepare_backend).
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
    # PartialState() is always the one that start_processes has made.
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
    # accelerate keeps its precision in a class attribute for the lifetime of the process: a second training in the same
    # ComfyUI could not have another one ("AcceleratorState has already been initialized").
    with own_states(PartialState, AcceleratorState, GradientState):
        # No placement: ComfyUI's patcher has put the model on its device, and takes it off again.
        yield _accelerator(dtype, "lora", on_cpu, device_placement=False)


def _accelerator(dtype: torch.dtype, mode: str, on_cpu: bool, device_placement: bool) -> Accelerator:
    # Under a LoRA every layer casts its own frozen weights to the type of its input (Trainer.attach): autocast would
    # keep a second copy of each weight. A complete model is stored in fp32 and needs autocast to compute in less.
    autocast = AutocastKwargs(enabled=mode == "full")
    return Accelerator(
        cpu=on_cpu,
        device_placement=device_placement,
        mixed_precision=_MIXED_PRECISION[dtype],
        kwargs_handlers=[autocast],
    )


def shard_blocks(plugin: Any) -> None:
    """Let accelerate's FSDP plugin shard the transformer block by block.

    FSDP gathers a module's weights when the module is called. By default accelerate shards what the class lists in
    _no_split_modules, which in diffusers includes CogVideoXPatchEmbed; CogVideoXDiT calls its layers one by one, and
    they would meet shards instead of weights.
    """
    plugin.transformer_cls_names_to_wrap = [_BLOCK_CLASS]
    # Each process has mapped the checkpoint itself. The efficient way sends the weights of the main process to the
    # others, whose models it expects to be empty.
    plugin.cpu_ram_efficient_loading = False


def prepare(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, torch.optim.Optimizer]:
    """`model` and `optimizer` as accelerate wraps them: DistributedDataParallel, FSDP, mixed precision."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    # DistributedDataParallel begins by sending every parameter and buffer of the main process to the others. All have
    # loaded the same frozen weights, and quantised ones cannot be sent: only what is trained is left. The attribute is
    # torch's own (torch/nn/parallel/distributed.py); parameters are named there as in named_parameters.
    ignored: Any = [name for name, tensor in tensors if not tensor.requires_grad]
    model._ddp_params_and_buffers_to_ignore = ignored
    if accelerator.distributed_type == DistributedType.FSDP:
        # accelerate also shards the last child whose class has "Norm" in its name, and looks for it in the attribute
        # that base_model_prefix names, or in the model itself. It would find norm_out, of which CogVideoXDiT calls the
        # layers one by one (see shard_blocks): let it look in an attribute that does not exist. Source:
        # accelerate/utils/fsdp_utils.py, _find_final_norm.
        prefix: Any = "none"
        model.base_model_prefix = prefix
    return accelerator.prepare(model, optimizer)


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process. All have to leave the loop together: one that is gone would leave the
    others waiting for it in the next collective."""
    if accelerator.num_processes == 1:
        return flag
    total: Any = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    return bool(total > 0)


def on_main_process(state: PartialState, work: Callable[[], T]) -> T:
    """What `work` returns. The main process alone runs it and sends the result, pickled, to the others."""
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
    """Leave the process group. A process that exits without it gets torch's warning about leaked resources."""
    if state.num_processes > 1:
        torch.distributed.destroy_process_group()

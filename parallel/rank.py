"""One process of several that run a model together: what a Ray actor does."""

import os
import socket
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
import torch.distributed as dist

from ..errors import UserError, shortened
from ..host.attention_kernels import AttentionSize, choose_attention
from ..host.compat import is_out_of_memory, take_off_device
from ..host.exact_attention import with_exact_attention
from ..host.optional_packages import import_package
from ..keys import read_shared_tokens, with_positions, with_shared_tokens
from ..model_loaders.load_controlnet import load_controlnet
from ..model_loaders.load_model import load_model
from ..sockets.control import CogVideoXControl, ControlInputs
from .engine import PURPOSE, machine
from .fingerprint import fingerprint, versions
from .places import Place, own_card
from .rank_answers import (
    MEMORY,
    OTHER,
    USER,
    Answer,
    ControlQuestion,
    Failure,
    Prediction,
    Question,
    VaeQuestion,
    VaeRows,
)
from .rank_vae import RankVaes
from .run_patches import with_patches
from .split import Split
from .token_ranks import TokenRanks
from .transport import Packed, Receiver, packed, unpacked

_TCP = "tcp://"


class Rank:
    """What lives in one of the processes: loaded models by name, and who shares the tokens with whom."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}  # name -> [the patcher as it was loaded, the one with the run's patches]
        self._controls: dict[str, CogVideoXControl] = {}
        self._received: defaultdict[str, Receiver] = defaultdict(Receiver)  # by model: another one may go meanwhile
        self._sizes: set[AttentionSize] = set()
        self._ways: dict[Split, tuple[int, TokenRanks]] = {}
        self._said: list[str] = []
        self._vaes = RankVaes(lambda sentence: self._said.append(sentence))  # the list of the answer that is made then

    def answer(self, method: str, *arguments: Any) -> Answer:
        """Call `method`; no exception leaves the process: its class may not be known where it arrives."""
        self._said = []
        try:
            with torch.inference_mode():
                value = getattr(self, method)(*arguments)
        except Exception as error:
            if isinstance(error, UserError) and not is_out_of_memory(error):
                return Answer(None, Failure(USER, str(error), ""), tuple(self._said))
            # numpy, which takes tensors along, has an error of its own for main memory: a MemoryError.
            kind = MEMORY if is_out_of_memory(error) or isinstance(error, MemoryError) else OTHER
            text = shortened(f"{type(error).__name__}: {error}", 300)
            return Answer(None, Failure(kind, text, traceback.format_exc()), tuple(self._said))
        return Answer(value, None, tuple(self._said))

    def versions(self) -> dict[str, str]:
        """fingerprint.versions of this rank."""
        return versions()

    def process(self) -> int:
        """Its number in the system."""
        return os.getpid()

    def place(self) -> Place:
        """The machine and the card that this process is on."""
        numbers = import_package("ray", PURPOSE).get_gpu_ids()
        return Place(machine(), ", ".join(map(str, numbers)), own_card())

    def meeting(self) -> str:
        """A URL where all ranks of a cluster can meet; this one will be the first of them."""
        address = import_package("ray", PURPOSE).util.get_node_ip_address()
        with socket.socket() as listener:
            listener.bind((address, 0))
            return f"{_TCP}{address}:{listener.getsockname()[1]}"

    def join(self, number: int, world: int, meeting: str, splits: tuple[Split, ...]) -> None:
        """Meet the other ranks at `meeting`, the path of a file or tcp://address:port, as rank `number` of `world`."""
        backend = "nccl" if mm.get_torch_device().type == "cuda" else "gloo"
        if meeting.startswith(_TCP):
            dist.init_process_group(backend, init_method=meeting, rank=number, world_size=world)
        else:  # not as a URL: torch would look for a folder of another name where this one's has a space
            dist.init_process_group(backend, store=dist.FileStore(meeting, world), rank=number, world_size=world)
        for split in splits:
            # Every rank has to make every group, those that it is not in as well.
            groups: list[Any] = [  # or a number, for a rank that is not in it
                dist.new_group(list(range(first, first + split.sequence))) for first in range(0, world, split.sequence)
            ]
            mine = number // split.sequence
            self._ways[split] = mine, TokenRanks(groups[mine])

    def fingerprint(self, path: str, component: str) -> str:
        """Of the weights at `path`, to be compared with the other ranks'."""
        return fingerprint(Path(path), component)

    def load(self, name: str, path: str, weight_dtype: str, family: str, computes: str) -> None:
        """Load the transformer at `path` under `name`. computes: the dtype of ComfyUI's own arithmetic.

        Raises UserError as load_model does, and where this machine would compute in another dtype.
        """
        patcher = load_model(Path(path), weight_dtype, self._said.append, family)
        own = str(patcher.model.get_dtype_inference())
        if own != computes:
            raise UserError(
                f"One of the machines computes the model in {own}, ComfyUI's own in {computes}: their cards or "
                "processors are not of one kind. Choose a weight_dtype in which all of them compute; fp32 is one."
            )
        self._models[name] = [patcher, patcher]

    def patch(self, name: str, patches: dict[str, list[Any]]) -> None:
        """Put `patches` on the weights of a model, as ModelPatcher.patches has them, in the place of earlier ones."""
        models = self._models[name]
        models[1] = with_patches(models[0], patches)

    def unload(self, name: str) -> None:
        """Take a model's weights off the card; they stay in this process."""
        if name in self._models:
            for patcher in self._models[name]:
                take_off_device(patcher)

    def load_control(self, name: str, path: str, weight_dtype: str) -> None:
        """Load the control net at `path` under `name`. Raises UserError as load_controlnet does."""
        self._controls[name] = load_controlnet(Path(path), weight_dtype)

    def load_vae(self, name: str, path: str, weight_dtype: str) -> None:
        """Load the VAE at `path` under `name`. Raises UserError as model_loaders.load_vae does."""
        self._vaes.load(name, path, weight_dtype)

    def decode(self, question: VaeQuestion) -> VaeRows:
        """This rank's rows of a chunk's frames, [1, 3, t, 8 h, 8 w]."""
        return self._vaes.compute(question, decodes=True)

    def encode(self, question: VaeQuestion) -> VaeRows:
        """This rank's rows of a chunk's moments, [1, 32, n, H / 8, W / 8]."""
        return self._vaes.compute(question, decodes=False)

    def end_video(self, video: str) -> None:
        """After the last chunk of a video, or in the middle of one that was cancelled."""
        self._vaes.end(video)

    def forget(self, name: str) -> None:
        """Release a model with its control nets, a control net or a VAE."""
        self.unload(name)
        self._models.pop(name, None)
        for control in [each for each in self._controls if each.startswith(name)]:  # those of a model as well
            take_off_device(self._controls.pop(control).patcher)
        self._vaes.forget(name)
        self._received.pop(name, None)
        mm.soft_empty_cache()

    def loaded_bytes(self, name: str) -> int:
        """Of a model's weights that are on the card now."""
        return self._models[name][1].loaded_size() if name in self._models else 0

    def predict(self, question: Question, split: Split) -> Prediction:
        """v for this rank's prompts of a batch that `split` divides."""
        group, tokens = self._ways[split]
        patcher = self._models[question.model][1]
        received = self._received[question.model]
        if question.is_new_run:
            received.forget()

        def own(x: torch.Tensor) -> torch.Tensor:
            # What is the same for all of the batch has a batch of 1.
            part = x if x.shape[0] == 1 else x.tensor_split(split.guidance)[group]
            return part.to(patcher.load_device)

        x, context = own(unpacked(question.x)), own(received.take(question.context))
        options: dict[str, Any] = with_positions({}, question.positions)  # type: ignore[arg-type]
        options = with_exact_attention(options) if question.is_exact_attention else options
        options = with_shared_tokens(options, tokens) if tokens.size > 1 else options
        tokens.sent_bytes = 0
        with self._loaded(patcher, question, x, context.shape[1], options) as network:
            control = None
            for asked in question.controls:
                control = self._control(asked, asked.x or question.x, control, options, received, own)
            v = network(
                x,
                own(unpacked(question.timestep)),
                context,
                ofs=None if question.ofs is None else own(unpacked(question.ofs)),
                control=control,
                transformer_options=options,
            )
        return Prediction(packed(v) if tokens.rank == 0 else None, tokens.sent_bytes)

    def _control(
        self,
        asked: ControlQuestion,
        x: Packed,
        previous: dict[str, Any] | None,
        options: dict[str, Any],
        received: Receiver,
        own: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, Any]:
        """What a control net adds to this rank's tokens, with what those before it add."""
        control = self._controls[asked.name]
        control.strength, control.strength_type = asked.strength, asked.strength_type
        guide, context = own(received.take(asked.guide)), own(received.take(asked.context))
        inputs = ControlInputs(own(unpacked(x)), guide, own(unpacked(asked.timestep)), context)
        return control.added(inputs, previous, options)

    def end_run(self, name: str) -> None:
        """After the last step of a run."""
        self._received.pop(name, None)
        if name in self._models:
            self._models[name][1].model.diffusion_model.forget_run()

    @contextmanager
    def _loaded(
        self, patcher: Any, question: Question, x: torch.Tensor, text_tokens: int, options: dict[str, Any]
    ) -> Iterator[torch.nn.Module]:
        """The transformer of `patcher`, as far on the card as a step of `x` leaves room for."""
        model = patcher.model
        patcher.model_options["transformer_options"] = options  # which memory_required looks at
        model.current_patcher = patcher
        controls = [self._controls[asked.name].patcher for asked in question.controls]
        mm.load_models_gpu([patcher, *controls], memory_required=model.memory_required(list(x.shape)))
        network = model.diffusion_model
        c = network.config
        tokens = network.video_tokens(x.shape) + text_tokens
        size = AttentionSize(x.device, x.dtype, tokens, c.attention_head_dim)
        if size not in self._sizes:  # says nothing where it has been measured
            self._sizes.add(size)
            ranks = read_shared_tokens(options)
            heads = -(-c.num_attention_heads // (ranks.size if ranks else 1))
            told = choose_attention(size, heads, options)
            self._said += [told] if told else []
        patcher.pre_run()
        try:
            yield network
        finally:
            patcher.cleanup()

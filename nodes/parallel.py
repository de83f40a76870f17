"""One clip on several cards."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..errors import UserError
from ..host.running_graph import is_linked
from ..parallel.engine import all_cards, check_address, check_cards, check_installed
from ..parallel.source_hash import note_imported
from ..parallel.split import AUTO, SPLITS, choose_split
from ..sockets.model import require_cogvideox_model
from ..sockets.vae import CogVideoXVAE
from .input_checks import check_vae_if_any, checked
from .inputs import model_input
from .search_words import SEARCH_WORDS

STOP, ALONE = "stop", "continue alone"
_MOST_CARDS = 64
# For a node that is connected to the second output.
_NO_VAE = "CogVideoX Parallel has no VAE to divide: connect one to its input vae as well."

note_imported()


def _check_split(split: str, cards: int, address: str = "") -> None:
    if not cards and address:
        raise UserError(
            "How many cards there are at an address is not known before Ray is asked. Set cards to their number."
        )
    choose_split(split, cards or all_cards(), machines=1)


@checked(check_installed, check_address, check_cards, _check_split, require_cogvideox_model, check_vae_if_any)
class CogVideoXParallel(io.ComfyNode):
    """MODEL and VAE out, without weights of their own: those of the ranks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXParallel",
            display_name="CogVideoX Parallel",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXParallel"],
            description="Compute one video on several cards at once. Each card gets a process with all of the model's "
            "weights, which it loads from their file, and computes a part of every step; the result is the same within "
            "rounding. Any sampler and any LoRA work, before or after this node. Needs the Python package ray.",
            inputs=[
                model_input(),
                io.Int.Input(
                    "cards",
                    default=0,
                    min=0,
                    max=_MOST_CARDS,
                    tooltip="How many cards compute together. 0: all of this machine. On a machine without cards, so "
                    "many processes of the CPU, 2 for 0, which is slower and for trying.",
                ),
                io.Combo.Input(
                    "split",
                    options=list(SPLITS),
                    default=AUTO,
                    tooltip="sequence: every card computes a part of the video's tokens. cfg: two cards, one for the "
                    "prompt and one for the negative prompt. both: two groups of cards. auto: sequence within a "
                    "machine, and cfg between two.",
                ),
                io.String.Input(
                    "address",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Of a Ray cluster, as machine:port, for cards of several machines; whoever runs this "
                    "ComfyUI has to have allowed it. Empty: the cards of this machine.",
                ),
                io.Combo.Input(
                    "on_failure",
                    options=[STOP, ALONE],
                    default=STOP,
                    optional=True,
                    advanced=True,
                    tooltip="Where a card fails in the middle of a run. stop: the run ends with a message. continue "
                    "alone: it goes on, on one card, from the step that was lost.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="From Load CogVideoX VAE or Load CogVideoX Pipeline, to decode and encode on all cards as "
                    "well: each computes some rows of every frame.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model on all cards, for any sampler and for nodes that change it."),
                io.Vae.Output(tooltip="The VAE on all cards, for every node that decodes or encodes."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        cards: int,
        split: str,
        address: str = "",
        on_failure: str = STOP,
        vae: CogVideoXVAE | None = None,
    ) -> io.NodeOutput:
        # Not at the top: few have several cards, and ComfyUI's start need not wait for it.
        from ..parallel.remote_model import spread
        from ..parallel.remote_vae import spread_vae

        if vae is None and is_linked(cls.hidden.prompt or {}, str(cls.hidden.unique_id), 1):
            raise UserError(_NO_VAE)  # here, before the video is sampled for nothing
        settings = cards, split, address, on_failure == ALONE
        far_vae = ExecutionBlocker(_NO_VAE) if vae is None else spread_vae(vae, *settings)
        return io.NodeOutput(spread(model, *settings), far_vae)

"""One clip on several cards."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..errors import UserError
from ..parallel.engine import all_cards, check_address
from ..parallel.split import AUTO, SPLITS, choose_split
from ..sockets.model import require_cogvideox_model
from .input_checks import checked
from .inputs import model_input
from .search_words import SEARCH_WORDS

STOP, ALONE = "stop", "continue alone"
_MOST_CARDS = 64


def _check_split(split: str, cards: int, address: str = "") -> None:
    if not cards and address:
        raise UserError(
            "How many cards there are at an address is not known before Ray is asked. Set cards to their number."
        )
    choose_split(split, cards or all_cards(), machines=1)


@checked(check_address, _check_split, require_cogvideox_model)
class CogVideoXParallel(io.ComfyNode):
    """MODEL out, without weights of its own: those of the ranks."""

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
            ],
            outputs=[io.Model.Output(tooltip="The model on all cards, for any sampler and for nodes that change it.")],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, cards: int, split: str, address: str = "", on_failure: str = STOP
    ) -> io.NodeOutput:
        # Not at the top: few have several cards, and ComfyUI's start need not wait for it.
        from ..parallel.remote_model import spread

        return io.NodeOutput(spread(model, cards, split, address, on_failure == ALONE))

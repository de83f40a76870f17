"""The weights of one model in the ranks of a team, with the patches that are on them now."""

import logging
import uuid
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import comfy.model_management as mm
import torch

from ..errors import UserError
from ..host.messages import show_on_running_node
from ..sockets.control import CogVideoXControl, ControlInputs
from .rank_answers import ControlQuestion, Question
from .run_patches import with_patches
from .team import RankLostError, Team
from .teams import drop_with, load_everywhere
from .transport import Sender, packed, unpacked

AskedControl = tuple[CogVideoXControl, ControlInputs]


class RemoteWeights:
    """Loads, patches and asks; and where a run may go on alone, does so.

    name: of the model in the ranks. sent_bytes: what a rank has sent to the others for the last prediction.
    """

    def __init__(
        self,
        team: Team,
        load_again: Callable[..., Any],
        arguments: tuple[Any, ...],
        computes: torch.dtype,
        goes_on_alone: bool,
    ):
        """load_again, arguments: of ModelPatcher.cached_patcher_init, load_model's own (path, weight_dtype, notify,
        family). computes: the dtype of the arithmetic."""
        self.team, self.name, self.sent_bytes = team, team.add(), 0
        self._load_again, self._arguments, self._computes = load_again, arguments, str(computes)
        self._goes_on_alone = goes_on_alone
        self._patches: dict[str, list[Any]] = {}
        self._loaded_with: tuple[int, Any] | None = None  # the team's start, and the patches that the ranks have
        self._is_on_cards, self._known_bytes = False, 0
        self._sender, self._is_new_run = Sender(), True
        # Of control nets, by their patchers in this process, and the start of the team that has them.
        self._control_names: MutableMapping[Any, str] = weakref.WeakKeyDictionary()
        self._control_start = 0
        self._alone: Any = None  # a patcher of this process, for the rest of a run that has lost its ranks
        self._placed: list[Any] = []  # it and control nets, as far as they were brought to the card

    @property
    def stays_alone(self) -> bool:
        """Whether ranks that this prompt has lost are not started again before it ends."""
        return self._goes_on_alone and self.team.was_lost

    def prepare(self, patches: dict[str, list[Any]], patches_uuid: Any) -> None:
        """Have the weights loaded with `patches` in every rank. Raises as Team.start and Team.ask do."""
        self._patches = patches
        if self.stays_alone:
            return
        with self.team.lock:
            self.team.start()
            if self._loaded_with is None or self._loaded_with[0] != self.team.start_count:
                path, weight_dtype, notify, family = self._arguments
                options = weight_dtype, family, self._computes
                load_everywhere(self.team, "transformer", "load", self.name, path, *options, notify=notify)
            if (self.team.start_count, patches_uuid) != self._loaded_with:
                self._loaded_with = self.team.start_count, None  # after a Cancel the ranks may have either
                self.team.ask("patch", self.name, patches)
                self._loaded_with = self.team.start_count, patches_uuid
            self._is_on_cards = True
            self._begin_run()

    def predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        ofs: torch.Tensor | None,
        positions: Any,
        is_exact_attention: bool,
        controls: Sequence[AskedControl],
    ) -> torch.Tensor | None:
        """v, shaped like x but for its channels; None where this process has to compute it: see alone.

        The other arguments are those of CogVideoXDiT.forward. Raises as Team.ask does.
        """
        if self._alone is None and self.stays_alone:
            show_on_running_node("A process of another card was lost in this run, which goes on alone, on one card.")
            self._alone = self._load_here()
        if self._alone is not None:
            self._place_here(controls, x.shape)
            return None
        is_new_run, self._is_new_run = self._is_new_run, False
        question = Question(
            self.name,
            is_new_run,
            packed(x),
            packed(timestep),
            self._sender.kept(context),
            None if ofs is None else packed(ofs),
            positions,
            is_exact_attention,
            tuple(self._control_question(each, x) for each in controls),
        )
        try:
            split = self.team.split.used_for(x.shape[0])
            answers = self.team.ask("predict", question, split, notify=show_on_running_node)
        except RankLostError as error:
            self._begin_run()
            self._loaded_with = None
            if not self._goes_on_alone:
                raise
            show_on_running_node(f"{error.message} This run goes on alone, on one card, from the step that was lost.")
            self._alone = self._load_here()
            self._place_here(controls, x.shape)
            return None
        except BaseException:  # Cancel: what was sent may not have arrived
            self._begin_run()
            raise
        self.sent_bytes = max(answer.sent_bytes for answer in answers)
        parts = [unpacked(answer.v) for answer in answers if answer.v is not None]
        return torch.cat(parts).to(x.device)

    def _control_question(self, asked: AskedControl, x: torch.Tensor) -> ControlQuestion:
        control, inputs = asked
        # Text to video has no other channels than the noisy ones, which the control net sees too.
        is_same = inputs.x.dtype == x.dtype and torch.equal(inputs.x, x)
        return ControlQuestion(
            self._control_names[control.patcher],
            None if is_same else packed(inputs.x),
            self._sender.kept(inputs.guide),
            packed(inputs.timestep),
            self._sender.kept(inputs.context),
            control.strength,
            control.strength_type,
        )

    def load_control(self, patcher: Any) -> None:
        """Have a control net loaded in every rank, unless it is. patcher: of this process, which keeps its weights."""
        if self.stays_alone:
            return
        with self.team.lock:
            self.team.start()
            if self._control_start != self.team.start_count:
                self._control_names.clear()
                self._control_start = self.team.start_count
            if patcher not in self._control_names:
                path, weight_dtype = patcher.cached_patcher_init[1][:2]
                name = f"{self.name} control {uuid.uuid4().hex}"
                load_everywhere(
                    self.team, "controlnet", "load_control", name, path, weight_dtype, notify=logging.warning
                )
                self._control_names[patcher] = name
                drop_with(patcher, self.team, name)

    def _begin_run(self) -> None:
        self._is_new_run = True
        self._sender.forget()

    def alone(self) -> Any:
        """The patcher of this process with the weights on its card, for a run that goes on alone."""
        return self._alone

    def _load_here(self) -> Any:
        patcher: Any = with_patches(self._load_again(*self._arguments), self._patches)
        patcher.model.current_patcher = patcher  # whose options memory_required looks at
        self.team.wait_until_gone()  # the first rank was on the same card
        return patcher

    def _place_here(self, controls: Sequence[AskedControl], shape: torch.Size) -> None:
        """Bring what a step asks to the card, unless it is there: a control net may begin in a later step than the one
        that was lost. shape: of the x of a step, for which there has to be room as well: RemoteModel.memory_required
        says 0."""
        models = [self._alone, *(control.patcher for control, _ in controls)]
        if any(model not in self._placed for model in models):
            mm.load_models_gpu(models, memory_required=self._alone.model.memory_required(list(shape)))
            self._placed = models

    def end_run(self) -> None:
        """After the last step: what was kept for the run goes."""
        self._alone, self._placed = None, []
        self._begin_run()
        if self.team.is_running:
            self.team.tell("end_run", self.name)

    def loaded_bytes(self) -> int:
        """Of the weights on the first rank's card, where that is the graph's own. While it computes what was cancelled,
        those that there were: ComfyUI asks before the next run, where nobody would hear another Cancel."""
        if not self.team.shares_card:
            return 0
        if not self.team.is_busy:
            self._known_bytes = self._bytes_or_none("loaded_bytes")
        return self._known_bytes

    def unload(self) -> int:
        """Take the weights off the ranks' cards. Returns what was on the first one's, in bytes."""
        freed = self.loaded_bytes()
        self._bytes_or_none("unload")
        self._is_on_cards = False
        return freed

    def _bytes_or_none(self, method: str) -> int:
        """The first rank's answer. Raises nothing: ComfyUI asks at any moment, for other models and outside of runs
        too, where an exception would end the thread that all runs are made in."""
        if not self._is_on_cards or not self.team.is_running:
            return 0
        try:
            return int(self.team.ask(method, self.name, may_cancel=False)[0] or 0)
        except UserError as error:  # the ranks are gone, and their weights with them
            logging.warning(str(error))
            return 0

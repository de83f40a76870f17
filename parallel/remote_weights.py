"""The weights of one model in the ranks of a team, with the patches that are on them now."""

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import torch

from ..errors import UserError
from ..host.messages import show_on_running_node
from .rank_answers import Question
from .team import RankLostError, Team
from .transport import packed, unpacked


class RemoteWeights:
    """Loads, patches and asks; and where a run may go on alone, does so.

    name: of the model in the ranks.
    """

    def __init__(self, team: Team, load_again: Callable[..., Any], arguments: tuple[Any, ...], goes_on_alone: bool):
        """load_again, arguments: of ModelPatcher.cached_patcher_init, load_model's own (path, weight_dtype, notify,
        family)."""
        self.team, self.name = team, team.add()
        self._load_again, self._arguments = load_again, arguments
        self._goes_on_alone = goes_on_alone
        self._patches: dict[str, list[Any]] = {}
        self._loaded_with: tuple[int, Any] | None = None  # the team's start, and the patches that the ranks have
        self._is_on_cards = False
        self._text_key = ""
        self._alone: Any = None  # a patcher of this process, for the rest of a run that has lost its ranks

    def prepare(self, patches: dict[str, list[Any]], patches_uuid: Any) -> None:
        """Have the weights loaded with `patches` in every rank. Raises as Team.start and Team.ask do."""
        self._patches = patches
        with self.team.lock:
            self.team.start()
            start, known = self._loaded_with or (0, None)
            if start != self.team.start_count:
                self._load()
            if (self.team.start_count, patches_uuid) != self._loaded_with:
                self.team.ask("patch", self.name, patches)
                self._loaded_with = self.team.start_count, patches_uuid
            self._is_on_cards = True
            self._text_key = ""

    def _load(self) -> None:
        path, weight_dtype, notify, family = self._arguments
        prints = self.team.ask("fingerprint", str(path))
        if len(set(prints)) > 1:
            raise UserError(
                f"The weights at {path} are not the same on every machine. Copy them from one machine to the others."
            )
        self.team.ask("load", self.name, str(path), weight_dtype, family, notify=notify)

    def predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        ofs: torch.Tensor | None,
        positions: Any,
        is_exact_attention: bool,
    ) -> torch.Tensor | None:
        """v, shaped like x but for its channels; None where this process has to compute it: see alone."""
        if self._alone is not None:
            return None
        split = self.team.split.used_for(x.shape[0])
        text = packed(context)
        text_key = hashlib.sha256(text.content.tobytes() + text.dtype.encode()).hexdigest()
        # The ranks have the prompts from the step before.
        known, self._text_key = text_key == self._text_key, text_key
        question = Question(
            self.name,
            packed(x),
            packed(timestep),
            None if known else text,
            text_key,
            None if ofs is None else packed(ofs),
            positions,
            is_exact_attention,
        )
        try:
            answers = self.team.ask("predict", question, split, notify=show_on_running_node)
        except RankLostError as error:
            self._loaded_with, self._text_key = None, ""
            if not self._goes_on_alone:
                raise
            show_on_running_node(f"{error} This run goes on alone, on one card, from the step that was lost.")
            self._alone = self._load_here()
            return None
        parts = [unpacked(answer.v) for answer in answers if answer.v is not None]
        return torch.cat(parts).to(x.device)

    def alone(self) -> Any:
        """The patcher of this process with the weights on its card, for a run that goes on alone."""
        return self._alone

    def _load_here(self) -> Any:
        patcher = self._load_again(*self._arguments).clone()
        for key, entries in self._patches.items():
            patcher.patches.setdefault(key, []).extend(entries)
        mm.load_models_gpu([patcher])
        return patcher

    def end_run(self) -> None:
        """After the last step: what was kept for the run goes."""
        self._alone = None
        self._text_key = ""
        if self.team.is_running:
            self.team.tell("end_run", self.name)

    def loaded_bytes(self) -> int:
        """Of the weights on the first rank's card, which is the graph's own."""
        if not self._is_on_cards or not self.team.is_running or self.team.address:
            return 0
        return int(self.team.ask("loaded_bytes", self.name)[0])

    def unload(self) -> int:
        """Take the weights off the ranks' cards. Returns what was on the first one's, in bytes."""
        if not self._is_on_cards or not self.team.is_running:
            return 0
        freed = self.loaded_bytes()
        self._is_on_cards = False
        try:
            self.team.ask("unload", self.name)
        except UserError as error:  # the ranks are gone, and their weights with them
            logging.warning(str(error))
        return freed

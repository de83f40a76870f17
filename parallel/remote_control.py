"""Control nets of a run whose model is in other processes: their weights are there as well."""

from typing import Any

import comfy.controlnet
import comfy.model_patcher
import torch

from ..errors import UserError
from ..host.protocols import GuiderExecutor
from ..sockets.control import CogVideoXControl, ControlInputs
from .remote_weights import AskedControl, RemoteWeights

ASKED = "cogvideox_asked"  # in what get_control returns: AskedControl for each control net


class RemoteControl(CogVideoXControl):
    """A CogVideoXControl that asks nothing itself: it hands on what its net is to be asked."""

    def copy(self) -> "RemoteControl":
        out = RemoteControl(self.patcher, self.hold_last_frame)
        self.copy_to(out)
        return out

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """Not its own: ComfyUI would place the weights on the card of this process."""
        return [patcher for patcher in super().get_models() if patcher is not self.patcher]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """0: they are in the ranks."""
        return 0

    def added(
        self, inputs: ControlInputs, previous: dict[str, Any] | None, transformer_options: dict[str, Any]
    ) -> dict[str, Any]:
        """{"cogvideox_asked": what is to be asked of this control net and of those before it}."""
        return {**(previous or {}), ASKED: (*(previous or {}).get(ASKED, ()), (self, inputs))}

    def _encoded_guide(self, size: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        # Where this process keeps the weights. It is a thousandth of a step's work.
        return super()._encoded_guide(size, self.patcher.offload_device)


def asked_controls(control: dict[str, Any] | None) -> tuple[AskedControl, ...]:
    """What RemoteControl has put into `control`. Raises UserError for what another pack's control net has added."""
    for name, additions in (control or {}).items():
        if name != ASKED and any(addition is not None for addition in additions):
            raise UserError(
                "A control net of another pack computes in this process, and its result cannot be divided over several "
                "cards. Take it out, or run on one card without CogVideoX Parallel."
            )
    return (control or {}).get(ASKED, ())


def computed_here(control: dict[str, Any] | None, transformer_options: dict[str, Any]) -> dict[str, Any] | None:
    """What the control nets add, for a run that goes on in this process."""
    out = None
    for asked, inputs in asked_controls(control):
        out = CogVideoXControl.added(
            asked, inputs._replace(guide=inputs.guide.to(inputs.x.device)), out, transformer_options
        )
    return out


def sample_with_remote_controls(
    weights: RemoteWeights, executor: GuiderExecutor, *arguments: Any, **options: Any
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: a run's control nets are RemoteControls. The same one stays the same for prompt and
    negative prompt, which ComfyUI computes as one batch only then."""
    guider: Any = executor.class_obj
    remote: dict[int, comfy.controlnet.ControlBase] = {}

    def changed(control: comfy.controlnet.ControlBase | None) -> comfy.controlnet.ControlBase | None:
        if not isinstance(control, CogVideoXControl):
            return control
        if id(control) not in remote:
            weights.load_control(control.patcher)
            out = RemoteControl(control.patcher, control.hold_last_frame)
            control.copy_to(out)
            out.set_previous_controlnet(changed(control.previous_controlnet))
            remote[id(control)] = out
        return remote[id(control)]

    guider.conds = {
        name: [{**entry, "control": changed(entry["control"])} if "control" in entry else entry for entry in entries]
        for name, entries in guider.conds.items()
    }
    return executor(*arguments, **options)

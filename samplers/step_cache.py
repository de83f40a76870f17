"""A cache of a run's steps: some are skipped, and take a clean video that is extrapolated from the steps before.

Along a run without fresh noise (ddim, euler) the predicted clean video changes almost linearly in the logarithm of the
noise level. A skipped step takes the straight line through the last two computed predictions; on CogVideoX-nano its
error is a fifth of that of keeping the last one, or the last change, as other caches do. With fresh noise in each step
(dpm) the predictions scatter, and the last one itself is the better guess. Which of the two it is, each computed step
shows: it is compared with what either would have given in its place.

The prediction is taken behind guidance, context windows, control nets and masks, so that there is one for all of them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..errors import UserError
from ..host.async_copies import LateRead
from ..host.messages import Notify
from ..host.protocols import GuiderExecutor, ModelSampling
from .comfy_sampler import plan_steps
from .stock_samplers import asks_once_a_step, known_name

Guess = Callable[[float, "list[_Computed]"], torch.Tensor]

# The part of a run, from its beginning and to its end, whose steps are all computed: the first ones decide what is
# seen, and an error of the last ones stays in the video. A run that is cut into parts (SplitSigmas) is several runs.
FIRST, LAST = 0.16, 0.08
_LEAST_FIRST, _LEAST_LAST = 3, 2  # in steps
_NEAR = 0.45  # of a step's length: there a sampler that computes in the middle of a step does not come
# How much of the estimated errors is left at the end, measured on CogVideoX-nano (python3 dev.py bench cache): the
# steps that follow correct most of it.
_LEFT_OF_LINE, _LEFT_OF_LAST = 0.07, 0.13


class _Computed(NamedTuple):
    """The prediction of a computed step. time: minus the logarithm of its sigma."""

    time: float
    x0: torch.Tensor


def _last(time: float, computed: list[_Computed]) -> torch.Tensor:
    return computed[-1].x0.clone()


def _line(time: float, computed: list[_Computed]) -> torch.Tensor:
    before, last = computed[-2:]
    return last.x0 + (last.x0 - before.x0) * ((time - last.time) / (last.time - before.time))


def step_cached(model: ModelPatcher, deviation: float, notify: Notify) -> ModelPatcher:
    """A clone of `model` whose runs skip steps, as many as keep the estimated deviation below `deviation`.

    deviation: the RMS of the difference from the latents of the run with all steps, over the RMS of these latents.
    notify: gets a sentence about what was skipped, when a run ends.
    """
    patched = model.clone()
    wrapper = partial(_sample_with_cache, deviation, notify)
    kind, key = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "cogvideox_step_cache"
    patched.remove_wrappers_with_key(kind, key)  # of an earlier node: it would take this one's steps for computed
    patched.add_wrapper_with_key(kind, key, wrapper)
    return patched


def _sample_with_cache(
    deviation: float, notify: Notify, executor: GuiderExecutor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: a cache for this run alone.

    Raises UserError where ComfyUI's EasyCache or LazyCache is on the model as well.
    """
    guider = executor.class_obj
    if "easycache" in guider.model_options.get("transformer_options", {}):
        raise UserError(
            "The model has two caches of steps, this pack's and ComfyUI's EasyCache or LazyCache: each would "
            "count the other's guesses as computed. Remove one of them."
        )
    # The sampler and the sigmas come after noise and latent (CFGGuider.outer_sample).
    levels = known_levels(args[2], args[3], guider.model_patcher.get_model_object("model_sampling"))
    cache = StepCache(deviation, asks_once_a_step(args[2]), levels)
    # The options are a copy of this run's own (CFGGuider.sample).
    kind, options = comfy.patcher_extension.WrappersMP.PREDICT_NOISE, guider.model_options
    comfy.patcher_extension.add_wrapper_with_key(
        kind, "cogvideox_step_cache", cache.predict, options, is_model_options=True
    )
    try:
        out = executor(*args, **kwargs)
    finally:
        cache.clear()
    notify(cache.describe())
    return out


def known_levels(
    sampler: comfy.samplers.Sampler, sigmas: torch.Tensor, model_sampling: ModelSampling
) -> list[float] | None:
    """The sigmas at which a sampler asks the model in a run along `sigmas`: of CogVideoX's own, which take the nearest
    of 1000 timesteps, and of ComfyUI's that ask once a step. None for others, and where s_churn raises the noise."""
    name, options = known_name(sampler), getattr(sampler, "extra_options", {})
    if name is None or not asks_once_a_step(sampler) or options.get("s_churn"):
        return None
    if not name.startswith("our "):
        return sigmas[:-1].tolist()
    if not hasattr(model_sampling, "alphas"):
        return None
    steps = plan_steps(model_sampling, sigmas, options.get("schedule_steps")) if len(sigmas) > 1 else []
    return model_sampling.sigmas.cpu()[[timestep for timestep, *_ in steps]].tolist()


class StepCache:
    """The predictions of one run, and which of its steps are computed."""

    def __init__(self, deviation: float, is_suited: bool = True, levels: list[float] | None = None):
        """levels: the sigmas at which the sampler will ask, where they are known."""
        self.deviation = deviation
        self._levels = levels
        self.sigmas: list[float] = []
        self.calls = self.skipped = 0
        self.computed: list[_Computed] = []
        self.errors: dict[Guess, float] = {}  # of each guess at the last computed step, relative to its prediction
        # The same, and the sigma of the last step before them, on their way from the card.
        self._unread: tuple[list[Guess], LateRead] | None = None
        self.estimate = 0.0  # of the deviation so far
        self.is_suited = is_suited  # whether the sampler computes once a step, with less and less noise

    @property
    def steps(self) -> int:
        return max(0, len(self.sigmas) - 1)

    def predict(
        self,
        executor: Callable[..., torch.Tensor],
        x: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper: the predicted clean video [B, 16, T, H, W], with guidance, computed or guessed.

        x: variance exploding. sigma: [B], the same for all.
        """
        if not self.sigmas:
            self.sigmas = model_options["transformer_options"]["sample_sigmas"].tolist()
        step = self.calls
        level = self._level(step, sigma)
        self.calls += 1
        time = -math.log(level) if level > 0 else math.inf
        self.is_suited = self.is_suited and self._is_next(step, time)
        if not self.is_suited:
            self.clear()
            return executor(x, sigma, model_options, seed)
        guess = self._choose(step, time)
        if guess is not None:
            self.skipped += 1
            self._read_later(sigma, {})
            return guess(time, self.computed)
        x0 = executor(x, sigma, model_options, seed)
        # A copy, for a sampler may compute in the prediction's own memory.
        self._learn(_Computed(time, x0.clone()), sigma)
        return x0

    def clear(self) -> None:
        """Release the predictions."""
        self.computed, self.errors, self._unread = [], {}, None

    def describe(self) -> str:
        """What the run has skipped, in a sentence for the user."""
        if not self.is_suited:
            return (
                "The step cache skips no further steps. It does not suit this sampler, which asks the model at other "
                "noise levels than its steps begin at, or for more than the prediction (cfg_pp). Use ddim, dpm or "
                "euler."
            )
        return (
            f"The step cache has skipped {self.skipped} of {self.steps} steps; the latents deviate by about "
            f"{self.estimate:.4f} from those with all steps, as estimated."
        )

    def _level(self, step: int, sigma: torch.Tensor) -> float:
        """The noise level of a step that begins. The host waits for the card once, for this and what was to be read
        later; after a preview, where the level is known, not at all."""
        if self._unread is not None:
            guesses, read = self._unread
            level, *errors = read.get()
            self.errors, self._unread = dict(zip(guesses, errors)) or self.errors, None
            if self._levels is not None and level != self._levels[step - 1]:
                self.is_suited = False  # something has asked in between
        if self._levels is not None and step < len(self._levels):
            return self._levels[step]
        return float(sigma.flatten()[0])

    def _read_later(self, sigma: torch.Tensor, errors: dict[Guess, torch.Tensor]) -> None:
        if errors or self._levels is not None:
            values = (sigma.flatten()[0], *errors.values())
            self._unread = [*errors], LateRead(torch.stack([value.double() for value in values]))

    def _is_next(self, step: int, time: float) -> bool:
        """Whether the sampler computes at the beginning of its next step. CogVideoX's own samplers take the nearest of
        1000 timesteps instead, which is nearer to it than to the middle of the step."""
        if step >= self.steps or self.sigmas[step] <= 0:
            return False
        last = self.computed[-1].time if self.computed else -math.inf
        gap = math.log(self.sigmas[step] / self.sigmas[step + 1]) if self.sigmas[step + 1] > 0 else math.inf
        return last < time and abs(time + math.log(self.sigmas[step])) < _NEAR * gap

    def _choose(self, step: int, time: float) -> Guess | None:
        """The guess that stands in for this step, whose cost is then counted; None where the step is computed."""
        first = max(_LEAST_FIRST, round(FIRST * self.steps))
        last = self.steps - max(_LEAST_LAST, round(LAST * self.steps))
        if not first <= step < last or not self.errors:
            return None
        guess = min(self.errors, key=self.errors.__getitem__)
        cost = self._expected(guess, time) * _weight(self.sigmas[step], self.sigmas[step + 1], has_noise=guess is _last)
        # The budget grows with the steps: else the first ones, whose guesses are worst, would use it up.
        if not self.estimate + cost <= self.deviation * (step + 1 - first) / (last - first):  # nor NaN
            return None
        self.estimate += cost
        return guess

    def _expected(self, guess: Guess, time: float) -> float:
        """The relative error of a guess at `time`, from that at the last computed step: a Taylor remainder, which grows
        with the distances to the points of the guess."""
        last, before = self.computed[-1].time, self.computed[-2].time
        growth = (time - last) / (last - before)
        if guess is _line:
            growth *= (time - before) / (last - self.computed[-3].time)
        return self.errors[guess] * growth

    def _learn(self, now: _Computed, sigma: torch.Tensor) -> None:
        guesses = [guess for guess, points in ((_last, 1), (_line, 2)) if len(self.computed) >= points]
        is_known = len(self.computed) >= 2
        errors = {guess: _largest_error(guess(now.time, self.computed), now.x0) for guess in guesses if is_known}
        self._read_later(sigma, errors)
        self.computed = [*self.computed[-2:], now]


def _weight(sigma: float, following: float, has_noise: bool) -> float:
    """What is left in the final latents of a relative error of 1 in the prediction of the step from `sigma` to
    `following`.

    The step replaces a part of the signal by the prediction: 1 - following / sigma of it in DDIM's equation, and 1 -
    (following / sigma)^2 in that with fresh noise (DPM-Solver++, SDE). In the noise there is only a little signal.
    """
    part = 1 - (following / sigma) ** (2 if has_noise else 1)
    signal = 1 / (1 + following**2) ** 0.5
    return part * signal * (_LEFT_OF_LAST if has_noise else _LEFT_OF_LINE)


def _largest_error(guessed: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """The RMS of the difference over that of x0, of the member of the batch where it is largest."""
    members = x0.flatten(1).float()
    errors = (guessed.flatten(1).float() - members).norm(dim=1) / members.norm(dim=1).clamp(min=1e-30)
    return errors.max()

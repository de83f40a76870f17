"""Faults that a slip of the hand could put into the code, and the tests that notice each one."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fault:
    """One wrong edit. text: stands exactly once in `file`, and `replacement` takes its place. tests: what pytest is to
    run; at least one of them must fail. harm: what a user would meet."""

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]
    harm: str

    def source(self, root: Path = ROOT) -> str:
        """The file with the fault in it. Raises ValueError unless the text stands there exactly once."""
        code = (root / self.file).read_text("utf-8")
        if code.count(self.text) != 1:
            raise ValueError(
                f"{self.name}: {self.text!r} occurs {code.count(self.text)} times in {self.file}, not once."
            )
        return code.replace(self.text, self.replacement)


FAULTS = (
    Fault(
        "DDIM with a swapped sign",
        "samplers/ddim.py",
        "c_x0 = alpha_next**0.5 - alpha**0.5 * c_x",
        "c_x0 = alpha_next**0.5 + alpha**0.5 * c_x",
        ("tests/samplers/test_parity.py::test_batch_equals_diffusers[5b-ddim]",),
        "Every video of the default sampler is noise.",
    ),
    Fault(
        "DPM draws its noise once a step",
        "samplers/dpm.py",
        "            noise = draw_noise()\n",
        "",
        ("tests/samplers/test_parity.py::test_batch_equals_diffusers[5b-dpm]",),
        "A seed gives another video than the reference from the second step on.",
    ),
    Fault(
        "no zero terminal SNR",
        "samplers/schedule.py",
        "return ((root - last) * (first / (first - last))) ** 2",
        "return root**2",
        ("tests/samplers/test_schedule.py::test_alphas_equal_diffusers",),
        "Sampling starts at a noise level that the models were not trained for.",
    ),
    Fault(
        "stock samplers of higher order take every step",
        "samplers/stock_samplers.py",
        "is_long = [0 < sigmas[i + 1] < least_ratio * sigmas[i] for i in range(count)]",
        "is_long = [False for i in range(count)]",
        ("tests/samplers/test_stock_samplers.py::test_combinations_that_drowned_in_noise_paint",),
        "heun with simple paints noise.",
    ),
    Fault(
        "a noisy latent is kept under a mask",
        "samplers/checks.py",
        "bool((denoise_mask < 1).any()) and goes_on",
        "bool((denoise_mask > 1).any()) and goes_on",
        ("tests/samplers/test_stock_samplers.py::test_a_mask_in_the_second_part_of_a_run_is_refused",),
        "The second part of a masked run keeps noise where it should keep the video.",
    ),
    Fault(
        "guidance rescale by the deviation of each column",
        "samplers/guidance.py",
        "dims = tuple(range(1, x.ndim))",
        "dims = tuple(range(1, x.ndim - 1))",
        ("tests/samplers/test_guidance.py::test_rescale_is_diffusers",),
        "guidance_rescale differs from diffusers by 1 to 2 %.",
    ),
    Fault(
        "dynamic guidance over the training steps",
        "samplers/guidance.py",
        "((steps - timestep) / steps) ** 5.0",
        "((1000 - timestep) / 1000) ** 5.0",
        ("tests/samplers/test_parity.py::test_run_equals_diffusers[5b-ddim-7-True]",),
        "dynamic_cfg gives another video than the reference.",
    ),
    Fault(
        "noise in ComfyUI's layout",
        "samplers/noise.py",
        "torch.randn((batch, frames, channels, height, width), generator=generator)\n    return noise.transpose(1, 2)",
        "torch.randn((batch, channels, frames, height, width), generator=generator)\n    return noise",
        ("tests/samplers/test_parity.py::test_batch_equals_diffusers[5b-ddim]",),
        "No seed gives the video that it gives in diffusers.",
    ),
    Fault(
        "the extra frame taken away at the end",
        "samplers/outer_sample.py",
        "video = out[:, :, extra:]",
        "video = out[:, :, : out.shape[2] - extra]",
        ("tests/samplers/test_parity.py::test_odd_and_even_latent_counts[1.5-5B-9-ddim]",),
        "CogVideoX 1.5's videos begin with a frame of noise and lack their last one.",
    ),
    Fault(
        "known latents not put back",
        "samplers/outer_sample.py",
        "out = torch.where(denoise_mask.to(out) == 0, latent_image.to(out), out)",
        "pass",
        ("tests/nodes/test_extend.py::test_known_latents_stay_where_a_run_ends_short_of_clean",),
        "A continued video does not quite begin with the frames that it continues.",
    ),
    Fault(
        "positions stretched the wrong way round",
        "transformer/positions.py",
        "get_resize_crop_region_for_grid((height, width), base_grid[1], base_grid[0])",
        "get_resize_crop_region_for_grid((height, width), base_grid[0], base_grid[1])",
        ("tests/transformer/test_dit.py::test_forward_equals_diffusers[5b-other]",),
        "CogVideoX-5b's pictures are distorted at every size but the square one.",
    ),
    Fault(
        "a guide's odd frame at the end",
        "transformer/control_net.py",
        "return torch.cat([x[:, :1], pairs], dim=1) if alone else pairs",
        "return torch.cat([pairs, x[:, :1]], dim=1) if alone else pairs",
        ("tests/transformer/test_controlnet.py::test_a_longer_guide_begins_alike",),
        "A control net sees the guide's first frame as its last.",
    ),
    Fault(
        "a LoRA's rank-stabilised scale ignored",
        "model_loaders/lora/layers.py",
        'math.sqrt(rank) if config.get("use_rslora") is True else 1',
        "1",
        ("tests/model_loaders/lora/test_apply.py::test_rank_stabilised_lora",),
        "LoRAs of peft's rsLoRA are far too weak.",
    ),
    Fault(
        "a file's length not compared with its header",
        "model_loaders/files/safetensors_files.py",
        "if size != 8 + length + end:",
        "if False:",
        ("tests/model_loaders/test_checkpoints.py::test_damaged_shard_is_named",),
        "A download that was cut short crashes ComfyUI, or loads as zeros.",
    ),
    Fault(
        "SAT's modulations in the wrong order",
        "model_loaders/files/key_maps.py",
        "(0, 1, 2, 6, 7, 8)",
        "(0, 1, 2, 3, 4, 5)",
        ("tests/model_loaders/files/test_layouts.py::test_transformer[5b-SAT, safetensors]",),
        "THUDM's own checkpoints load without a word and make noise.",
    ),
    Fault(
        "default precision is not the trained one",
        "model_loaders/precision.py",
        "supported = [trained, other, torch.float32]",
        "supported = [other, trained, torch.float32]",
        ("tests/model_loaders/test_precision.py::test_the_host_is_asked_for_the_trained_type_first",),
        "CogVideoX-5b runs in fp16, which it was not trained in, and may end in NaN.",
    ),
    Fault(
        "any count of frames is taken",
        "video_limits.py",
        "if frames < 1 or (frames - 1) % TEMPORAL:",
        "if frames < 1:",
        ("tests/vae/test_geometry.py",),
        "A video has fewer frames than asked for, and nothing says so.",
    ),
    Fault(
        "the inverted video not looked at",
        "samplers/follow.py",
        "following = run(query, both_keys, both_values, *args, **kwargs)",
        "following = run(query, key, value, *args, **kwargs)",
        ("tests/samplers/test_inversion.py::test_following_equals_diffusers[5b-7-6.0]",),
        "CogVideoX Follow Video costs twice the time and changes nothing.",
    ),
    Fault(
        "inversion with a swapped sign",
        "samplers/inversion.py",
        "x = alpha_next**0.5 * x0 + (1 - alpha_next) ** 0.5 * eps",
        "x = alpha_next**0.5 * x0 - (1 - alpha_next) ** 0.5 * eps",
        ("tests/samplers/test_inversion.py::test_way_back_of_an_odd_count[5b]",),
        "No video comes back from its inverted latent.",
    ),
    Fault(
        "half a file is left behind",
        "complete_file.py",
        "            path.unlink(missing_ok=True)\n",
        "            pass\n",
        ("tests/nodes/test_lora.py::test_nothing_half_written_is_left",),
        "A cancelled save leaves gigabytes under a hidden name.",
    ),
    Fault(
        "writing a video cannot be interrupted",
        "media/video_file.py",
        "throw_if_interrupted()\n",
        "pass\n",
        ("tests/media/test_video_file.py::test_interrupt_is_seen_between_frames",),
        "Cancel waits until the whole video is written.",
    ),
    Fault(
        "a download is not verified",
        "model_loaders/downloads/fetch.py",
        "if part.matches_digest():",
        "if True:",
        ("tests/model_loaders/downloads/test_fetch.py::test_wrong_bytes_are_downloaded_again_and_then_refused",),
        "A checkpoint with damaged bytes counts as whole.",
    ),
    Fault(
        "the hub may name any path",
        "model_loaders/downloads/hub.py",
        'check_path(entry.get("path"))',
        'entry.get("path")',
        ("tests/model_loaders/downloads/test_hub.py::test_names_that_lead_out_of_the_folder_are_refused",),
        "A wrong or hostile hub writes files outside the models folder.",
    ),
    Fault(
        "a linked range is not checked",
        "nodes/input_checks.py",
        "if not start_percent < end_percent:",
        "if False:",
        ("tests/nodes/test_input_checks.py::test_shared_checks",),
        "A control net with its range the wrong way round does nothing, and nothing says so.",
    ),
    Fault(
        "auto takes a plan of twice the free memory",
        "vae/plan.py",
        "if needed(plan) <= free_bytes)",
        "if needed(plan) <= 2 * free_bytes)",
        ("tests/vae/test_memory_modes.py::test_auto_takes_the_fastest_mode_that_fits",),
        "A decode runs out of memory on its way and starts again.",
    ),
    Fault(
        "auto forgets the weights still to load",
        "sockets/vae.py",
        "available_memory(self.patcher) - (self.size - self.patcher.loaded_size())",
        "available_memory(self.patcher)",
        ("tests/vae/test_memory_modes.py::test_auto_leaves_room_for_weights_still_to_load",),
        "The first decode after a run takes a mode that does not fit.",
    ),
    Fault(
        "auto forgets what ComfyUI can unload",
        "host/compat.py",
        "            available += other.loaded_size()",
        "            available += 0",
        ("tests/vae/test_memory_modes.py::test_a_full_card_is_emptied_for_the_fastest_mode",),
        "After sampling on a full card the leanest mode is taken, minutes slower.",
    ),
    Fault(
        "the VAE asks ComfyUI for no room",
        "sockets/vae.py",
        "memory_required=needed(shape, self.vae_dtype, plan)",
        "memory_required=0",
        ("tests/vae/test_memory_modes.py::test_comfyui_is_asked_for_what_the_mode_needs",),
        "The diffusion model stays on the card, and the decode runs out of memory.",
    ),
    Fault(
        "a step takes a mode of twice the free memory",
        "transformer/memory_modes.py",
        "if needed(mode) <= free_bytes)",
        "if needed(mode) <= 2 * free_bytes)",
        ("tests/transformer/test_memory_modes.py::TestChoice",),
        "A step runs out of memory on its way and begins again.",
    ),
    Fault(
        "a step out of memory begins again as before",
        "transformer/dit.py",
        "self._modes = ladder[ladder.index(following) :]",
        "pass",
        ("tests/transformer/test_memory_modes.py::TestOutOfMemory::test_it_goes_on_leaner",),
        "Every step of the run fails once more before it goes on.",
    ),
    Fault(
        "held weights stay in the buffer",
        "host/ops.py",
        "unpacked.clone() if unpacked is weight else unpacked",
        "unpacked",
        ("tests/transformer/test_memory_modes.py::TestHeldWeights::test_the_next_layer_overwrites_the_buffer",),
        "On a small card a block is computed with another layer's weights: the video is noise.",
    ),
    Fault(
        "a group of heads gets the first group's weights",
        "transformer/attention.py",
        "rows = slice(heads.start * width, heads.stop * width)",
        "rows = slice(0, len(heads) * width)",
        ("tests/transformer/test_memory_modes.py::TestExact::test_every_family",),
        "On a small card every video is noise.",
    ),
    Fault(
        "tiles are ignored",
        "sockets/vae.py",
        "return tile_x * tile_y * zoom**2 if tile_x and tile_y else None",
        "return None",
        ("tests/vae/test_memory_modes.py::test_tiled_ways_work_on_no_more_than_a_tile",),
        "Who tiles because memory is short runs out of it.",
    ),
    Fault(
        "an encode never falls back",
        "sockets/vae.py",
        'partial(self._report_fallback, "Encoding")',
        "None",
        ("tests/vae/test_memory_modes.py::test_running_out_of_memory_goes_on_leaner",),
        "Encoding a long clip ends in an error where a leaner mode would do.",
    ),
    Fault(
        "the least mode is the low one",
        "vae/plan.py",
        'name="least", hidden_on_host=True)',
        'name="least")',
        ("tests/vae/test_memory.py::test_leaner_plans_need_less",),
        "The last resort out of memory is the mode that has just failed.",
    ),
    Fault(
        "the medium mode is the fast one",
        "vae/plan.py",
        'OffloadPlan("medium", caches_on_host=True)',
        'OffloadPlan("medium")',
        ("tests/vae/test_memory.py::test_leaner_plans_need_less",),
        "The first fallback out of memory is the mode that has just failed.",
    ),
    Fault(
        "the average of the weights is ignored",
        "training/loop.py",
        "if not config.ema_decay:",
        "if True:",
        ("tests/training/test_loop.py::test_average_of_the_weights_is_what_is_saved",),
        "ema_decay changes nothing.",
    ),
    Fault(
        "the average of the weights is never updated",
        "training/loop.py",
        "average.update_parameters(torch.nn.ParameterList(trained.values()))",
        "pass",
        ("tests/training/test_loop.py::test_average_of_the_weights_is_what_is_saved",),
        "With ema_decay a training gives the weights that it began with.",
    ),
    Fault(
        "gradients are not clipped",
        "training/loop.py",
        "accelerator.clip_grad_norm_(list(trained.values()), config.max_grad_norm)",
        "pass",
        ("tests/training/test_loop.py::test_large_gradients_are_clipped",),
        "One broken clip throws a LoRA out of what it has learnt.",
    ),
    Fault(
        "any file of the disk is served with the pack's pages",
        "host/served_pages.py",
        "if not is_spelled_inside(file, root) or not is_below(file, root) or not _is_file(file):",
        "if not _is_file(file):",
        ("tests/host/test_served_pages.py",),
        "Whoever can open the page reads every file.",
    ),
    Fault(
        "a replaced node is not noticed",
        "host/start_check.py",
        "        if found is not node:",
        "        if found is None:",
        ("tests/host/test_start_check.py::test_nodes_of_another_pack_with_the_same_ids",),
        "Workflows run another pack's node, and nothing says so.",
    ),
    Fault(
        "transformers is not told of a broken accelerate",
        "host/optional_packages.py",
        "    hide_from_transformers(transformers, name)\n",
        "",
        ("tests/host/test_optional_packages.py::test_models_load_whatever_diffusers_would_import_besides[99.0]",),
        "No model loads where accelerate is broken, which only training needs.",
    ),
)

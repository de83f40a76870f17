"""The tiers of the suite, what each leaves out, and how its tests are shared between workers. tests/README.md says
what the tiers are for."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

TIERS = ("fast", "standard", "long")  # each runs all that the one before it runs
TESTS = Path(__file__).resolve().parent
ALL = ()  # in SLOW: the whole file
# What the fast tier leaves out although it talks to no server: what takes half a second or more and is neither a
# comparison with diffusers nor a rule of the house. File -> functions, or ALL; tests/test_tiers.py knows whether they
# exist. A fast run names the tests that belong here.
SLOW: dict[str, tuple[str, ...]] = {
    "devtools/run/test_run_clips.py": ("test_own_server_lists_what_another_comfyui_has",),
    "devtools/run/test_run_plan.py": ("test_what_is_not_a_server_is_told_so",),
    "devtools/run/test_run_values.py": (
        "test_names_that_are_no_text_are_kept",
        "test_an_invalid_record_is_somebody_elses",
        "test_results_are_written_through_links",
        "test_the_longest_out_can_be_written",
    ),
    "devtools/run/test_run_work.py": (
        "test_ended_run_is_ended_on_the_server_too",
        "test_reader_that_ends_is_no_traceback",
    ),
    "devtools/test_bench_gpu.py": ALL,
    "devtools/test_environment.py": ("test_pip_says_how_much_has_come",),
    "devtools/test_forecast_tables.py": ALL,
    "devtools/test_models.py": ("test_failure_is_one_sentence",),
    "devtools/test_overlay.py": ("test_pip_leaves_the_shared_packages_alone",),
    "devtools/test_process.py": (
        "test_long_step_shows_that_it_is_alive",
        "test_process_that_ignores_the_request_to_end_is_killed",
        "test_progress_has_no_blank_lines",
    ),
    "devtools/test_server.py": (
        "test_server_does_not_outlive_a_command_that_is_ended",
        "test_server_that_never_answers_is_given_up_and_stopped",
    ),
    "devtools/test_signals.py": ("test_nohup_and_background_jobs_stay_what_they_are",),
    "devtools/test_workflow.py": ("test_agrees_with_comfy_cli",),
    "devtools/test_wrapper_folder.py": ("test_whatever_the_file_is",),
    "host/test_kernel_choice.py": ("test_a_run_measures_the_sizes_that_it_has",),
    "host/test_model_tree.py": ("test_two_transformers_in_one_folder",),
    "host/test_optional_packages.py": ("test_models_load_whatever_diffusers_would_import_besides",),
    "host/test_previews.py": (
        "test_flipbook_plays_every_frame_in_turn_until_dropped",
        "test_tiny_decoder_sees_unscaled_latents",
    ),
    "host/test_start_check.py": (
        "test_a_copy_that_lacks_nearly_all",
        "test_a_half_updated_copy_leaves_the_name_to_a_whole_one",
        "test_a_second_copy_is_left_out",
        "test_a_second_link_to_the_same_folder_is_left_out",
    ),
    "media/test_pictures.py": ("test_intermediate_pictures_stay_small",),
    "migration/test_huge_workflows.py": ALL,
    "model_loaders/downloads/test_fetch.py": (
        "test_416_starts_the_file_again",
        "test_a_damaged_half_file_is_found",
        "test_a_file_that_changed_on_the_hub_is_not_mixed",
        "test_a_killed_process_keeps_what_it_downloaded",
        "test_a_server_that_stays_broken_is_left_with_what_there_is",
        "test_an_answer_without_a_length_is_not_taken_for_the_whole",
        "test_cut_connections_are_continued",
        "test_offline_says_what_to_put_where",
        "test_two_downloads_into_one_folder",
    ),
    "model_loaders/downloads/test_hub.py": ("test_the_token_goes_to_the_hub_alone",),
    "model_loaders/files/test_costly_files.py": (
        "test_headers_of_more_than_any_model",
        "test_many_tensors_are_taken",
    ),
    "model_loaders/files/test_counted_files.py": ("test_zip_files_whose_end_lies",),
    "model_loaders/files/test_fuzz.py": ALL,
    "model_loaders/files/test_hostile_files.py": ("test_weights_with_nan_are_named",),
    "model_loaders/files/test_layouts.py": ("test_renamed_files_are_the_same",),
    "model_loaders/files/test_official_sizes.py": (
        "test_a_whole_model_is_mapped_not_read",
        "test_transformer_in_a_torch_file",
    ),
    "model_loaders/files/test_wrong_contents.py": ALL,
    "model_loaders/lora/test_costly_loras.py": ("test_the_most_patterns_that_are_read",),
    "model_loaders/test_config_limits.py": (
        "test_false_blocks",
        "test_the_log_repeats_no_file",
    ),
    "model_loaders/test_configs_followed.py": (
        "test_a_run_with_other_patches",
        "test_vae",
    ),
    "model_loaders/test_forecast.py": (
        "test_a_larger_card_streams_less",
        "test_a_leaner_mode_holds_more_in_main_memory",
        "test_all_of_a_run_on_the_smallest_cards",
        "test_an_h100_took_as_much",
        "test_eight_bits_are_counted_as_they_are_loaded",
        "test_the_advice_leaves_less_to_stream",
        "test_the_disk_is_at_most_the_download",
        "test_the_step_is_what_its_tensors_take",
        "test_the_vae_takes_that_mode",
        "test_what_does_not_fit_is_said",
    ),
    "model_loaders/test_precision.py": (
        "test_error_against_fp32",
        "test_order_of_precisions",
    ),
    "model_loaders/test_quantized_patches.py": (
        "test_partial_loading_is_bit_equal",
        "test_run_under_inference_mode_and_again",
        "test_stock_merging",
    ),
    "nano/test_conditions.py": ("test_masked_clips_are_the_nodes",),
    "nano/test_score.py": (
        "test_clips_of_other_prompts_score_near_chance",
        "test_right_clips_score_right",
        "test_what_does_not_move_has_no_motion",
    ),
    "nano/test_stages.py": ALL,
    "nano/test_tasks.py": ("test_edges_of_another_clip_do_not_overlap",),
    "nano/test_toy_settings.py": ("test_a_change_of_the_table_reaches_everything_that_reads_it",),
    "nano/test_weights.py": (
        "test_a_trained_model_gives_diffusers_latents",
        "test_text_to_video_paints_what_the_prompt_says",
        "test_the_lora_paints_a_colour_that_the_model_never_saw",
        "test_the_rhythm_of_the_vae_is_no_jump",
    ),
    "nodes/test_download.py": (
        "test_cancel_ends_it_at_once_and_the_next_run_goes_on",
        "test_it_shows_size_speed_and_time_left",
    ),
    "nodes/test_extend.py": ("test_three_clips_chained",),
    "nodes/test_file_inputs.py": ("test_clients_are_answered_while_a_file_is_read",),
    "nodes/test_memory_forecast.py": (
        "test_a_card_that_is_too_small_is_told_what_to_do",
        "test_choices_are_those_of_the_widgets",
        "test_more_than_the_machine_has",
        "test_the_toy_is_called_by_its_name",
        "test_what_the_node_says",
        "test_windows_need_less",
    ),
    "nodes/test_missing_models.py": (
        "test_every_published_file_is_told_where_it_belongs",
        "test_saved_values_stay_valid",
    ),
    "nodes/test_stock_patches.py": ("test_compiled_patches",),
    "nodes/test_train.py": (
        "test_cancelled_training_goes_on",
        "test_cores_trainer",
        "test_finished_training_is_taken_from_its_checkpoint",
        "test_gradient_checkpointing_and_precision",
        "test_loras_on_the_model_are_trained_upon",
        "test_mixed_sizes_and_batches_of_clips",
        "test_nothing_of_a_training_is_left",
        "test_one_training_a_checkpoint_name",
        "test_other_settings_start_from_the_beginning_or_are_refused",
        "test_small_weights_are_trained_upon",
    ),
    "nodes/test_training_clips.py": (
        "test_core_trains_on_the_lists",
        "test_lists_for_training",
    ),
    "nodes/test_video_file.py": (
        "test_a_batch_is_as_many_files",
        "test_long_video_at_flat_memory",
    ),
    "samplers/test_fun.py": (
        "test_control_at_another_size",
        "test_control_strength_and_range",
        "test_inpaint_keeps_the_latents_themselves",
        "test_inpaint_noise_spares_what_is_masked",
        "test_short_control_video",
        "test_void_runs_with_comfyui_conditioning",
    ),
    "samplers/test_guidance.py": ("test_comfyui_s_node_is_said_to_be_for_images",),
    "samplers/test_image_to_video.py": (
        "test_any_number_of_latents",
        "test_clips_chained_from_their_last_frames",
        "test_image_scale_is_an_option",
        "test_learned_table_fits_one_size",
        "test_noise_augmentation",
        "test_other_configurations",
        "test_wrong_pairs_are_refused",
    ),
    "samplers/test_inversion.py": (
        "test_following_a_batch",
        "test_interrupted_run_leaves_nothing",
        "test_inversion_of_a_batch_and_of_one_frame",
        "test_part_of_the_run",
        "test_stock_sampler_follows",
        "test_way_back_leads_to_the_video",
        "test_way_back_of_an_odd_count",
    ),
    "samplers/test_long_video.py": (
        "test_free_noise_shuffles_the_first_window",
        "test_learned_table_in_windows_of_its_own_length",
        "test_prompts_follow_each_other",
        "test_riflex_leaves_short_videos_alone",
        "test_start_image_for_every_window_when_asked",
        "test_video_to_video_in_windows",
    ),
    "samplers/test_merged_models.py": ("test_models_of_one_family_are_merged",),
    "samplers/test_repeated_image.py": ALL,
    "samplers/test_step_cache.py": (
        "test_a_part_of_a_schedule",
        "test_context_windows",
        "test_image_to_video",
        "test_samplers_of_comfyui",
        "test_what_a_mask_keeps_stays_exact",
    ),
    "samplers/test_stock_samplers.py": (
        "test_combinations_that_drowned_in_noise_paint",
        "test_dpm_fast_and_adaptive_leave_no_noise",
        "test_first_order_stays_as_it_is",
        "test_rising_noise_levels",
    ),
    "samplers/test_video_to_video.py": (
        "test_odd_number_of_latents_on_1_5",
        "test_other_configurations",
        "test_sampled_posterior_of_a_batch_equals_diffusers",
    ),
    "samplers/test_window_caches.py": (
        "test_each_window_has_a_cache_of_its_own",
        "test_every_schedule_of_windows",
        "test_lazy_cache_and_a_short_video",
        "test_the_log_counts_steps",
    ),
    "sockets/test_control.py": (
        "test_no_tensor_is_left_on_the_wrong_device",
        "test_run_in_context_windows",
        "test_stock_apply_node",
        "test_strength_zero_changes_nothing",
        "test_two_control_nets_equal_the_reference",
    ),
    "sockets/test_devices.py": ("test_no_tensor_is_left_on_the_wrong_device",),
    "sockets/test_model.py": (
        "test_easy_cache_and_context_windows",
        "test_stock_euler_equals_our_ddim",
    ),
    "sockets/test_model_memory.py": ("test_estimate_covers_the_peak",),
    "sockets/test_recommended.py": (
        "test_a_part_of_a_run_is_no_run_of_few_steps",
        "test_graphs_of_strangers_do_not_stop_a_hint",
        "test_windows_and_positions_are_for_longer_videos",
    ),
    "sockets/test_toy_colours.py": (
        "test_a_preview_has_the_colours_of_the_clip",
        "test_the_table_is_what_the_script_fits",
    ),
    "test_children.py": ALL,
    "test_interpreted_kernels.py": ALL,
    "test_left_behind.py": (
        "test_one_training_a_folder",
        "test_the_next_run_deletes_what_a_kill_has_left",
        "test_what_is_being_written_stays",
    ),
    "test_metadata.py": (
        "test_every_address_names_one_owner",
        "test_the_package_has_what_the_nodes_read",
    ),
    "system/test_small_files.py": ("test_every_reader_of_json",),
    "test_start.py": ALL,
    "test_types.py": (
        "test_nothing_is_dead",
        "test_the_type_checker_finds_no_errors",
    ),
    "training/test_costly_clips.py": ("test_long_lists_are_taken",),
    "training/test_dataset.py": ALL,
    "training/test_dataset_clips.py": ("test_a_table_of_many_columns",),
    "training/test_loop.py": ("test_killed_training_ends_in_the_same_lora",),
    "training/test_lora_training.py": ("test_base_of_every_precision_trains",),
    "training/test_processes.py": ALL,
    "training/test_recipe.py": ALL,
    "training/test_two_drivers.py": ALL,
    "training/test_wrong_datasets.py": (
        "test_boxes_of_clips",
        "test_pngs",
    ),
    "transformer/test_compiled_blocks.py": ALL,
    "transformer/test_memory_modes.py": ("test_streamed_patched_and_quantised_weights",),
    "transformer/test_traffic.py": (
        "test_no_pass_more_than_needed",
        "test_the_lean_mode_takes_less_and_moves_little_more",
        "test_the_same_is_computed",
    ),
    "vae/test_compiled.py": ALL,
    "vae/test_memory.py": ALL,
    "vae/test_memory_modes.py": ("test_comfyui_is_asked_for_what_the_mode_needs",),
    "vae/test_network.py": (
        "test_bf16_error_is_diffusers_own",
        "test_tiled_decode_is_the_decode",
    ),
    "vae/test_streaming.py": (
        "test_everything_is_where_it_is_computed",
        "test_half_precision_loses_no_more_than_diffusers",
        "test_memory_does_not_grow_with_length",
        "test_memory_of_an_encode_does_not_grow_with_length",
    ),
    "vae/test_tiny_decoder.py": (
        "test_even_counts_are_those_of_the_exact_decoder",
        "test_node_lays_a_batch_end_to_end",
        "test_one_frame_a_latent",
        "test_room_that_a_draft_asks_for",
        "test_what_is_no_taecvx_is_refused_with_its_name",
    ),
}


def long_after(kept: int, cases: Iterable[Any]) -> list[Any]:
    """Cases of a parametrised test: the first `kept` for every run, the others for the long tier."""
    given = list(cases)
    return [*given[:kept], *(pytest.param(case, marks=pytest.mark.long) for case in given[kept:])]


def long_rows_after(kept: int, rows: Iterable[tuple]) -> list[Any]:
    """The same for a test of several parameters, whose cases are tuples."""
    return [pytest.param(*row, marks=() if number < kept else pytest.mark.long) for number, row in enumerate(rows)]


def long_but_one_in(share: int, *values: Sequence[Any]) -> list[Any]:
    """All combinations of several parameters' values: one in `share` for every run, the others for the long tier. Each
    value occurs in every run. Raises: ValueError where too few values leave one out."""
    for number, each in enumerate(values):
        others = sum(len(other) - 1 for other in (*values[:number], *values[number + 1 :]))
        if others < share - 1:
            raise ValueError(f"Of {each} some would never be in a run: the others have too few values for {share}.")
    numbered = product(*(enumerate(each) for each in values))
    return [
        pytest.param(*(value for _, value in row), marks=pytest.mark.long if sum(n for n, _ in row) % share else ())
        for row in numbered
    ]


def left_out(items: Iterable[pytest.Item], tier: str) -> dict[pytest.Item, str]:
    """The tests that `tier` does not run, each with the reason."""
    seen: set[tuple[Path, str]] = set()
    reasons: dict[pytest.Item, str] = {}
    for item in items:
        reason = _reason(item, tier, seen)
        if reason:
            reasons[item] = reason
    return reasons


def _reason(item: pytest.Item, tier: str, seen: set[tuple[Path, str]]) -> str:
    """Why `tier` leaves a test out; "" where it runs. seen: (file, function) of the cases that the fast tier runs."""
    if tier == "long":
        return ""
    if item.get_closest_marker("long"):
        return "of minutes, or that repeat what shorter ones cover (marked long)"
    if tier == "standard" or item.get_closest_marker("fast"):
        return ""
    for marker in ("server", "browser"):
        if item.get_closest_marker(marker):
            return f"of a real {marker}"
    if is_slow(item):
        return "of some seconds each"
    function = item.path, getattr(item, "originalname", None) or item.name
    if function in seen:
        return "that are further cases of a test"
    seen.add(function)
    return ""


def is_slow(item: pytest.Item) -> bool:
    """Whether SLOW names the test's function or file."""
    functions = SLOW.get(item.path.relative_to(TESTS).as_posix())
    return functions is ALL or (getattr(item, "originalname", None) or item.name) in (functions or ())


def summary_lines(tier: str, counts: Counter) -> list[str]:
    """What the end of a run says about the tests that its tier left out."""
    lines = [f"{count:5d} tests {reason}" for reason, count in counts.most_common()]
    wider = [name for name in TIERS[TIERS.index(tier) + 1 :]]
    commands = " or ".join("`python3 dev.py test" + ("`" if name == "standard" else f" --{name}`") for name in wider)
    return [*lines, f"They run with {commands}."]


_ONE_SERVER = ("tests/server/", "tests/browser/")
_TOGETHER = (*_ONE_SERVER, "tests/parallel/test_remote_")  # the last for Ray and two ranks
# Whose tests wait for processes forked from the run's server (children.py).
_FORKING = (
    "tests/devtools/farm/test_farm_work.py",
    "tests/host/test_start_check.py",
    "tests/nano/test_toy_settings.py",
    "tests/parallel/test_cluster.py",
    "tests/parallel/test_row_ranks.py",
    "tests/test_children.py",
    "tests/test_left_behind.py",
    "tests/test_start.py",
    "tests/training/test_loop.py",
    "tests/training/test_processes.py",
)
_OWN_SERVERS = ("test_beside_others.py", "test_plain_install.py")  # of tests/server


def room_of(node_id: str) -> str:
    """What one worker runs: a file, or files whose tests share processes, since every worker would start its own."""
    file = node_id.split("::", 1)[0]
    if file.endswith(_OWN_SERVERS):
        return file
    return next((shared for shared in _TOGETHER if file.startswith(shared)), file)


# Rooms whose tests wait for processes that they start, most of their time.
_WAITING = (
    *_FORKING,
    "tests/devtools/",
    "tests/host/test_optional_packages.py",
    "tests/model_loaders/downloads/",
    *(f"tests/server/{name}" for name in _OWN_SERVERS),
)


def heaviest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """The order in which workers take rooms: those of servers, which are the largest, then files with slow tests, so
    that no long test is left to one worker at the end. Rooms that wait stand apart from each other among the others:
    side by side they would leave the cores idle."""
    slow = {item.path for item in items if is_slow(item) or item.get_closest_marker("long")}

    def weight(item: pytest.Item) -> int:
        # In a worker that had run thousands of tests torch.compile has failed; why is not known. vae/compiled.py logs
        # the traceback at debug level, which these tests show where they fail.
        if item.nodeid.startswith(("tests/vae/test_compiled.py", "tests/transformer/test_compiled_blocks.py")):
            return -1
        if room_of(item.nodeid) in _ONE_SERVER:
            return 0
        return 1 if item.path in slow or item.path.name in _OWN_SERVERS else 2

    rooms = list(dict.fromkeys(room_of(item.nodeid) for item in sorted(items, key=weight)))
    place = {room: number for number, room in enumerate(_apart(rooms))}
    return sorted(items, key=lambda item: place[room_of(item.nodeid)])


def _apart(rooms: list[str]) -> list[str]:
    """The same rooms, those that wait spread evenly over all but the first eighth of the others: the rooms of servers
    wait as well, and other workers should compute beside them."""
    waiting = [room for room in rooms if room.startswith(_WAITING)]
    others = [room for room in rooms if not room.startswith(_WAITING)]
    first = len(others) // 8
    step = (len(others) - first) / (len(waiting) + 1)
    places: list[tuple[float, str]] = [*enumerate(others)]
    places += [(first + number * step - 0.5, room) for number, room in enumerate(waiting, 1)]
    return [room for _, room in sorted(places)]

"""Names that no code of ours uses, and who uses them instead."""

UNUSED = {
    "argparse reads it on a parser": "formatter_class",
    "weakref reads it on a finalizer": "atexit",
    "ComfyUI calls or reads it on a custom node": """
        WEB_DIRECTORY get_node_list on_load
    """,
    "ComfyUI calls or reads it on a model, a VAE, a CLIP, a control net, a latent format or a previewer": """
        concat_cond resize_cond_for_context_window unet_extra_config memory_usage_factor
        latent_dimensions layout_type spacial_downscale_ratio temporal_downscale_ratio custom_operations
        latent_dim upscale_ratio downscale_ratio upscale_index_formula downscale_index_formula handles_tiling not_video
        decode_tiled encode_tiled tokenize_with_weights untokenize decode_latent_to_preview_image
        partially_unload get_key_patches model_state_dict current_weight_patches_uuid
    """,
    "ComfyUI or torch calls or reads it on a layer, a quantised tensor or its layout": """
        __class__ comfy_cast_weights comfy_need_lazy_init_bias convert_weight set_weight weight_scale comfy_quant
        orig_shape to_device copy_from get_plain_tensors state_dict_tensors
    """,
    "parallel.team.Team calls it in a Ray actor, by its name": "end_video",
    "a parameter that a function has because ComfyUI passes it, or takes it": """
        preview_format non_blocking inplace x_in original_weight sid extra_memory force_patch_weights memory_to_free
        filter_prefix
    """,
    "a key of a TypedDict: it is read by a name that is put together, or by ComfyUI": """
        cogvideox_drawn cogvideox_trajectory cogvideox_std cogvideox_images cogvideox_empty_text cogvideox_dataset
        concat_latent_image cogvideox_task cogvideox_known cogvideox_scale cogvideox_end cogvideox_range
        cogvideox_repeated
    """,
    "an annotation in quotes, which vulture does not read": "AudioStream",
    "torch reads it among its settings, or ComfyUI": "allow_tf32 aimdo_enabled base_directory",
    "tokenizers reads it on a Tokenizer": "pre_tokenizer post_processor",
    "PyAV reads it on a stream": """
        bit_rate color_primaries color_trc colorspace color_range sample_rate thread_type
    """,
    "accelerate, peft or torch's DDP reads it": """
        base_model_prefix transformer_cls_names_to_wrap cpu_ram_efficient_loading _ddp_params_and_buffers_to_ignore
        cast_input_dtype_enabled
    """,
    "ComfyUI reads it among its options": "base_directory",
    "ComfyUI's EasyCache reads it on its own state": "initial_step",
    "the tests, whose client of a server devtools/client.py is as well": "interrupt history",
}

"""The wrapper's sampler, with all that it is given -> the nodes that make the size, the conditions and the run."""

from dataclasses import dataclass, replace
from typing import Any

from .loader_mapping import LoadedModel, conditioning_of, load_vae, model_of, with_control_net
from .migration_report import Work, shown
from .node_graph import Link, Node
from .run_numbers import even_frames, even_side, matching_denoise, video_size, window_frames
from .wrapper_nodes import EXTRAS, SCHEDULES, STOCK_SAMPLERS

_MOST_STEPS = 1000  # timesteps that the models were trained with
_EMPTY_LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage")  # [B, C, H, W], of which the wrapper takes the size only
_LAYOUT = (
    "The wrapper's latents are [B, T, C, H, W] and scaled; those of this pack are "
    "x.permute(0, 2, 1, 3, 4) / scaling_factor"
)


@dataclass(frozen=True)
class Conditions:
    """What a run starts from."""

    positive: Link
    negative: Link
    latent: Link
    changes_video: bool = False


@dataclass(frozen=True)
class Steps:
    """steps and denoise of a sampler here, and the length of the schedule, which the wrapper calls steps."""

    steps: object
    denoise: float
    whole: object


def convert_sampler(work: Work, node: Node) -> None:
    """CogVideoSampler. Raises CannotConvert."""
    if Link(node.id, 0) in work.graph.moved:  # a second pass has asked for it already
        return
    with work.once(node, "latent"):
        _convert_sampler(work, node)


def _convert_sampler(work: Work, node: Node) -> None:
    _check_extras(work, node)
    model = model_of(work, node)
    positive, negative = conditioning_of(work, node, "positive"), conditioning_of(work, node, "negative")
    positive, negative = with_control_net(work, node, positive, negative)
    conditions = _conditions(work, node, model, positive, negative)
    run = _steps(work, node, conditions.changes_video)
    link, in_windows = _with_windows(work, node, model)
    if not model.is_fp32:
        work.changed(node, "the same seed makes another video: the wrapper draws its noise in the model's precision.")
    cfg = node.inputs["cfg"]
    if work.graph.constant(cfg) is None:
        work.lacks(node, "its cfg comes from another node. A cfg for each step has no counterpart; it is set to 6.")
        cfg = 6.0
    shared: dict[str, Any] = {
        "positive": conditions.positive,
        "negative": conditions.negative,
        "latent_image": conditions.latent,
    }
    shared |= {"seed": node.inputs["seed"], "cfg": cfg}
    added = _add_sampler(work, node, replace(model, link=link), run, in_windows, shared)
    work.graph.moved[Link(node.id, 0)] = Link(added.id, 0)


def convert_decoder(work: Work, node: Node) -> None:
    """CogVideoDecode. Raises CannotConvert."""
    samples = work.needed(node, "samples")
    maker = work.graph.nodes[samples.node]
    if maker.type != "CogVideoSampler":
        raise work.refuse(
            node, f"it decodes what {maker.label} makes, which is not a sampler of the wrapper. {_LAYOUT}."
        )
    vae = load_vae(work, work.needed(node, "vae"), node)
    added = work.add("CogVideoXDecode", node, vae=vae, samples=samples)
    work.graph.moved[Link(node.id, 0)] = Link(added.id, 0)


def _check_extras(work: Work, node: Node) -> None:
    for name, sentence in EXTRAS.items():
        if work.graph.resolve(node.inputs.get(name)) is not None:
            work.left_out(node, sentence)
    if work.graph.resolve(node.inputs.get("tora_trajectory")) is not None:
        work.lacks(node, "Tora's trajectories are not supported by this pack.")


def _steps(work: Work, node: Node, changes_video: bool) -> Steps:
    """The wrapper runs the last int(steps * strength) of `steps`, and all where it has no video to start from; a
    sampler here runs `steps`. Source: prepare_latents in its pipeline_cogvideox.py."""
    steps, strength = node.inputs["steps"], work.graph.constant(node.inputs["denoise_strength"])
    if strength == 1 or not changes_video:
        if strength != 1:
            work.changed(node, "denoise is 1: without a video to start from, the wrapper ignores denoise_strength.")
        return Steps(steps, 1.0, steps)
    count = work.graph.constant(steps)
    if not isinstance(strength, (int, float)) or not isinstance(count, int):
        raise work.refuse(node, "steps or denoise_strength come from another node: type both in and migrate again.")
    found = matching_denoise(count, strength) if 0 < count <= _MOST_STEPS and 0 < strength < 1 else None
    if found is None:
        raise work.refuse(
            node,
            f"{shown(count)} steps at denoise_strength {shown(strength)} are less than a step. Choose more of either.",
        )
    work.changed(node, f"the last {found[0]} of {count} steps are run: steps {found[0]}, denoise {found[1]}.")
    return Steps(*found, whole=count)


def _add_sampler(
    work: Work, node: Node, model: LoadedModel, run: Steps, in_windows: bool, inputs: dict[str, Any]
) -> Node:
    """The sampler that stands for the wrapper's scheduler."""
    inputs |= {"model": model.link, "steps": run.steps, "denoise": run.denoise}
    scheduler = str(work.graph.constant(node.inputs["scheduler"]))
    if scheduler == "CogVideoXDPMScheduler":
        is_dynamic = not in_windows  # in windows the wrapper leaves the guidance as it is
        if is_dynamic:
            work.changed(node, "dynamic_cfg is on, as the wrapper always has it with this scheduler.")
        if is_dynamic and run.denoise != 1:
            # The wrapper's formula goes by the whole schedule, a sampler's dynamic_cfg by the steps that are run.
            patch = work.add("CogVideoXDynamicCFG", node, (0, -1), model=model.link, steps=run.whole, cfg=inputs["cfg"])
            inputs["model"], is_dynamic = Link(patch.id, 0), False
        return work.add("CogVideoXSample", node, **inputs, sampler="dpm", dynamic_cfg=is_dynamic)
    if scheduler == "DDIM" and model.traits.is_2b:
        work.lacks(node, "with DDIM the wrapper loses the noise schedule of 2b; CogVideoX's own ddim is taken instead.")
    if scheduler in ("CogVideoXDDIM", "DDIM"):
        return work.add("CogVideoXSample", node, **inputs, sampler="ddim", dynamic_cfg=False)
    name = STOCK_SAMPLERS.get(scheduler)
    if name is None:
        work.lacks(node, f"the scheduler {shown(scheduler)} has no counterpart; KSampler's ipndm is nearest.")
        name = "ipndm"
    else:
        work.changed(node, f"{scheduler} is KSampler's {name}: the same method, and not the same numbers.")
    return work.add("KSampler", node, **inputs, sampler_name=name, scheduler="simple")


def _with_windows(work: Work, node: Node, model: LoadedModel) -> tuple[Link, bool]:
    """The model, run in context windows where the sampler has them, and whether it has."""
    options = work.graph.source(node.inputs.get("context_options"))
    if options is None:
        return model.link, False
    values = {name: work.graph.constant(value) for name, value in options.inputs.items()}
    frames, overlap = values.get("context_frames"), values.get("context_overlap")
    found = window_frames(frames, overlap) if isinstance(frames, int) and isinstance(overlap, int) else None
    schedule = SCHEDULES.get(str(values.get("context_schedule")))
    is_known = schedule is not None and isinstance(values.get("freenoise"), bool)
    is_known = is_known and options.type == "CogVideoContextOptions"
    if not is_known or found is None or not isinstance(frames, int):
        raise work.refuse(
            options, f"windows of {shown(frames)} frames with an overlap of {shown(overlap)} have no counterpart."
        )
    if values["context_stride"] != 4:
        work.lacks(options, f"context_stride {shown(values['context_stride'])} has no counterpart; it is 4.")
    work.changed(
        options,
        f"{frames} frames are {frames // 4} latents in the wrapper; here as many are {found[0]} frames. FreeNoise "
        "shuffles the noise in another order.",
    )
    added = work.add(
        "CogVideoXContextWindows",
        options,
        model=model.link,
        context_frames=found[0],
        overlap_frames=found[1],
        schedule=schedule,
        fuse_method="flat",
        freenoise=values["freenoise"],
        retain_start_image=work.graph.resolve(node.inputs.get("image_cond_latents")) is not None,
    )
    return Link(added.id, 0), True


# What the run starts from


def _conditions(work: Work, node: Node, model: LoadedModel, positive: Link, negative: Link) -> Conditions:
    """The prompts with an image or a control video, and the LATENT that holds the size or the video to change."""
    image, samples = (work.graph.source(node.inputs.get(name)) for name in ("image_cond_latents", "samples"))
    _check_fit(work, node, model, image)
    video = samples if samples is not None and samples.type not in _EMPTY_LATENTS else None
    latent = _start_video(work, node, video) if video is not None else None
    if image is None and not model.traits.is_inpaint:
        return Conditions(positive, negative, latent or _empty_latent(work, node, samples), video is not None)
    if image is not None:
        added = _image_conditions(work, node, model, image, positive, negative)
    else:
        size, at = _size_of_samples(work, node, samples), samples or node
        work.changed(
            node, "an InP model needs CogVideoX Fun Inpaint: without pictures, all of the video is regenerated."
        )
        inputs = {"positive": positive, "negative": negative, "vae": _any_vae(work, node)}
        added = work.add("CogVideoXFunInpaint", at, (0, 1), **inputs, **size, **_frames(work, node))
    latent = latent or Link(added.id, 2)
    return Conditions(Link(added.id, 0), Link(added.id, 1), latent, video is not None)


def _check_fit(work: Work, node: Node, model: LoadedModel, image: Node | None) -> None:
    """What the wrapper's sampler refuses or fails on itself."""
    traits = model.traits
    if image is not None and not traits.takes_image:
        raise work.refuse(node, "its model takes no image, and image_cond_latents is connected. Disconnect it.")
    if image is None and traits.takes_image and not (traits.is_inpaint or traits.is_control):
        raise work.refuse(node, "its model needs an image, and image_cond_latents is not connected. Connect it.")
    if image is None and traits.is_control:
        raise work.refuse(node, "its model needs a control video, and image_cond_latents is not connected. Connect it.")
    wanted = "CogVideoImageEncodeFunInP" if traits.is_inpaint else "CogVideoImageEncode"
    if image is not None and image.type != wanted:
        raise work.refuse(node, f"its image_cond_latents come from {image.label}; this model needs {wanted}.")


def _empty_latent(work: Work, node: Node, samples: Node | None) -> Link:
    size = _size_of_samples(work, node, samples)
    return Link(work.add("CogVideoXEmptyLatent", samples or node, **size, **_frames(work, node)).id, 0)


def _size_of_samples(work: Work, node: Node, samples: Node | None) -> dict[str, Any]:
    """width and height of an empty latent, or of the video that is encoded."""
    if samples is None:
        raise work.refuse(node, "neither samples nor image_cond_latents are connected: it has no size. Connect one.")
    if samples.type == "CogVideoImageEncode":
        return _size_of_image(work, samples, "start_image")
    found = {name: samples.inputs.get(name, samples.widget(i, name)) for i, name in enumerate(("width", "height"))}
    if samples.type not in _EMPTY_LATENTS:
        raise work.refuse(node, f"its size comes from {samples.label}, which is unknown. Use an EmptyLatentImage.")
    return {name: even_side(work, samples, name, value) for name, value in found.items()}


def _size_of_image(work: Work, user: Node, name: str) -> dict[str, Any]:
    image = work.needed(user, name)
    width, height = video_size(work, user, image)
    return {"width": even_side(work, user, "width", width), "height": even_side(work, user, "height", height)}


def _frames(work: Work, node: Node) -> dict[str, Any]:
    return {"frames": even_frames(work, node, node.inputs["num_frames"]), "batch_size": 1}


def _any_vae(work: Work, node: Node) -> Link:
    """The VAE that what `node` makes is decoded with: nothing else in its chain has one."""
    decoder = work.decoders.get(node.id)
    if decoder is not None:
        return load_vae(work, work.needed(decoder, "vae"), decoder)
    raise work.refuse(node, "no CogVideoDecode follows it, whose VAE its model needs. Add one and migrate again.")


def _start_video(work: Work, node: Node, video: Node) -> Link:
    """The LATENT of a video that is changed."""
    if work.graph.constant(node.inputs["denoise_strength"]) == 1:
        raise work.refuse(
            node,
            f"at denoise_strength 1 the wrapper takes {video.label} for the noise itself (warped noise), which has no "
            "counterpart here. For video to video set it below 1.",
        )
    if video.type == "CogVideoSampler":
        convert_sampler(work, video)
        return work.graph.moved[Link(video.id, 0)]
    if video.type != "CogVideoImageEncode":
        raise work.refuse(node, f"its samples come from {video.label}. {_LAYOUT}: encode the video again.")
    for name, least in (("noise_aug_strength", 0), ("strength", 1)):
        given = work.graph.constant(video.inputs[name])
        if given != least:
            work.lacks(video, f"{name} {shown(given)} has no counterpart for video to video; it is {least}.")
    vae, images = load_vae(work, work.needed(video, "vae"), video), work.needed(video, "start_image")
    images = _first_frames(work, node, images)
    return Link(work.add("CogVideoXEncodeVideo", video, vae=vae, images=images).id, 0)


def _first_frames(work: Work, node: Node, images: Link) -> Link:
    """The frames that are changed: the first num_frames of the video, or all of it where it has no more."""
    found = work.graph.resolve(node.inputs["num_frames"])
    if isinstance(found, Link) and found.slot == 3 and work.graph.nodes[found.node].type == "GetImageSizeAndCount":
        return images  # the video's own number
    frames = even_frames(work, node, node.inputs["num_frames"])
    return Link(work.add("ImageFromBatch", node, (0, -1), image=images, batch_index=0, length=frames).id, 0)


def _image_conditions(work: Work, node: Node, model: LoadedModel, image: Node, positive: Link, negative: Link) -> Node:
    """The node for what is concatenated with the noisy video."""
    inputs: dict[str, Any] = {"positive": positive, "negative": negative}
    inputs["vae"] = load_vae(work, work.needed(image, "vae"), image)
    inputs |= _size_of_image(work, image, "start_image") | _frames(work, node)
    start, end = work.needed(image, "start_image"), work.graph.resolve(image.inputs.get("end_image"))
    if model.traits.is_inpaint:
        length, frames = (work.graph.constant(user.inputs["num_frames"]) for user in (image, node))
        if length != frames:
            work.changed(image, "its num_frames are not known to be the sampler's: those of the sampler are taken.")
        if end is not None:
            work.changed(image, "the last frame is kept as the end image is; the wrapper marks the first frame alone.")
        noise = image.inputs["noise_aug_strength"]
        pictures = {"start_image": start, "end_image": end}
        return work.add("CogVideoXFunInpaint", image, **inputs, **pictures, noise_augmentation=noise)
    if model.traits.is_control:
        if work.graph.constant(image.inputs["noise_aug_strength"]) != 0:
            work.lacks(image, "noise_aug_strength has no counterpart for a control video; it is 0.")
        inputs |= {name: image.inputs[name] for name in ("strength", "start_percent", "end_percent")}
        return work.add("CogVideoXFunControl", image, **inputs, control_video=start)
    for name, least in (("strength", 1), ("start_percent", 0), ("end_percent", 1)):
        given = work.graph.constant(image.inputs[name])
        if given != least:
            work.lacks(image, f"{name} {shown(given)} has no counterpart for a start image; it is {least}.")
    work.changed(image, "the mode of the VAE's posterior is taken; the wrapper draws a sample of it.")
    if model.traits.unscaled_image:
        work.changed(image, "image_scale is unscaled: the wrapper divides out the scale for CogVideoX 1.5.")
    return work.add(
        "CogVideoXImageToVideo",
        image,
        **inputs,
        start_image=start,
        end_image=end,
        noise_augmentation=image.inputs["noise_aug_strength"],
        image_scale=model.image_scale,
    )

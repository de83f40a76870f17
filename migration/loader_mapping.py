"""The wrapper's loaders, LoRAs, prompts and control nets -> this pack's nodes."""

from dataclasses import dataclass

from .migration_report import Work, shown
from .node_graph import Graph, Link, Node
from .wrapper_nodes import CHECKPOINTS, GGUF_VAE, QUANTIZATION, TORA_CHECKPOINT, Checkpoint, Traits, traits_of

LOADERS = ("DownloadAndLoadCogVideoModel", "DownloadAndLoadCogVideoGGUFModel", "CogVideoXModelLoader")
_SCALED = ("orbit", "dimensionx")  # parts of a LoRA's name that the wrapper takes for one of DimensionX's
_AS_TRAINED, _BY_RANK = "as trained", "1 / rank (DimensionX)"


@dataclass(frozen=True)
class LoadedModel:
    """The MODEL of a loader with its patches, and what the wrapper takes it for. is_fp32: whether noise is, too.
    image_scale: of CogVideoX Image to Video."""

    link: Link
    traits: Traits
    is_fp32: bool
    image_scale: str


def model_of(work: Work, node: Node) -> LoadedModel:
    """The model that a sampler gets. Raises CannotConvert."""
    loader = work.graph.nodes[work.needed(node, "model", slot=0).node]
    if loader.type not in LOADERS:
        raise work.refuse(node, f"its model comes from {loader.label}, which is not a loader of the wrapper.")
    name = work.text(loader, "model")
    precision = loader.inputs.get("precision", loader.inputs.get("base_precision", loader.inputs.get("vae_precision")))
    traits = traits_of(name)
    # A 1.5 file whose name does not say so gets the image as the wrapper scales it for 1.0, against the file's own way.
    scale = "checkpoint" if loader.type == "DownloadAndLoadCogVideoModel" else "multiplied"
    scale = "unscaled" if traits.unscaled_image else scale
    return LoadedModel(load_model(work, loader), traits, precision == "fp32", scale)


def load_model(work: Work, loader: Node) -> Link:
    """CogVideoXLoadModel, and the patches that the wrapper's loader applies itself. Raises CannotConvert."""
    if (loader.id, "model") in work.made:
        return work.made[loader.id, "model"]
    name = work.text(loader, "model")
    if name == TORA_CHECKPOINT or "tora" in name.lower():
        raise work.refuse(loader, f"{shown(name)} is Tora's, whose trajectories this pack does not support.")
    known = _checkpoint(work, loader) if loader.type == "DownloadAndLoadCogVideoModel" else None
    file = _folder(work, loader, known) if known else name
    family = known.family if known else "detect"
    model = Link(work.add("CogVideoXLoadModel", loader, model_name=file, weight_dtype=_dtype(work, loader)).id, 0)
    work.graph.nodes[model.node].inputs["family"] = family
    if not known:
        work.changed(loader, f"the model is looked for as {shown(file)} in models/diffusion_models.")
    _note_options(work, loader)
    model = _with_loras(work, loader, model)
    compiled = work.graph.source(loader.inputs.get("compile_args"))
    if compiled is not None:
        backend = work.graph.constant(compiled.inputs["backend"])
        model = Link(work.add("TorchCompileModel", compiled, model=model, backend=backend).id, 0)
        work.left_out(compiled, "of the settings of torch.compile only the backend has a counterpart.")
    work.made[loader.id, "model"] = work.graph.moved[Link(loader.id, 0)] = model
    return model


def load_vae(work: Work, link: Link, user: Node) -> Link:
    """The VAE at a link of the wrapper's. Raises CannotConvert."""
    loader = work.graph.nodes[link.node]
    if (loader.id, "vae") in work.made:
        return work.made[loader.id, "vae"]
    if loader.type == "CogVideoXVAELoader":
        file, dtype = work.text(loader, "model_name"), loader.inputs["precision"]
        if work.graph.source(loader.inputs.get("compile_args")) is not None:
            work.left_out(loader, "the VAE is not compiled; CogVideoX Decode has a widget `compile`.")
    elif loader.type == "DownloadAndLoadCogVideoModel" and link.slot == 1:
        known = _checkpoint(work, loader)
        file = (known.vae or known.folder) if work.options.wrapper_folder else known.official or known.folder
        dtype = loader.inputs["precision"]
    elif loader.type == "DownloadAndLoadCogVideoGGUFModel" and link.slot == 1:
        file, dtype = GGUF_VAE, loader.inputs["vae_precision"]
        work.changed(loader, f"the VAE is looked for as {file} in models/vae.")
    else:
        raise work.refuse(user, f"its vae comes from {loader.label}, which is not a VAE of the wrapper.")
    place = (0, 0) if loader.type == "CogVideoXVAELoader" else (0, 1)
    vae = Link(work.add("CogVideoXLoadVAE", loader, place, vae_name=file, weight_dtype=dtype).id, 0)
    work.made[loader.id, "vae"] = work.graph.moved[Link(loader.id, link.slot)] = vae
    return vae


def _checkpoint(work: Work, loader: Node) -> Checkpoint:
    name = work.text(loader, "model")
    if name not in CHECKPOINTS:
        raise work.refuse(loader, f"the checkpoint {shown(name)} is unknown. Choose one of the wrapper's list.")
    return CHECKPOINTS[name]


def _folder(work: Work, loader: Node, known: Checkpoint) -> str:
    name = work.text(loader, "model")
    if work.options.wrapper_folder:
        return known.folder
    if known.official:
        work.changed(
            loader,
            f"{name} is {known.official}: queue CogVideoX Download once, or migrate with --extra-model-paths to use "
            "the files in models/CogVideo.",
        )
        return known.official
    work.changed(
        loader,
        f"{name} is not in CogVideoX Download: put its files into models/diffusers/{known.folder}, or migrate with "
        "--extra-model-paths to use those in models/CogVideo.",
    )
    return known.folder


def _dtype(work: Work, loader: Node) -> str:
    """weight_dtype of the transformer."""
    if loader.type == "DownloadAndLoadCogVideoGGUFModel":
        return "default"  # as the file is quantised
    precision = work.text(loader, "precision" if "precision" in loader.inputs else "base_precision")
    quantization = work.text(loader, "quantization")
    if quantization == "disabled":
        return precision
    if quantization not in QUANTIZATION:
        work.lacks(
            loader, f"the quantization {shown(quantization)} has no counterpart; without it weights are {precision}."
        )
        return precision
    dtype = QUANTIZATION[quantization]
    work.changed(loader, f"{quantization} becomes {dtype}, which scales the weights: the numbers differ.")
    return dtype


def _note_options(work: Work, loader: Node) -> None:
    """What the wrapper's loader is told about memory and attention."""
    if work.graph.source(loader.inputs.get("block_edit")) is not None:
        work.lacks(loader, "the transformer's blocks cannot be removed.")
    if loader.inputs.get("enable_sequential_cpu_offload") or loader.inputs.get("load_device") == "offload_device":
        work.left_out(loader, "offloading is ComfyUI's own: weights that do not fit the card are streamed.")
    if loader.inputs.get("fp8_fastmode"):
        work.left_out(loader, "fp8_fastmode has no counterpart for GGUF weights.")
    attention = str(loader.inputs.get("attention_mode"))
    if "sage" in attention:
        work.left_out(loader, f"{shown(attention)} is an option of ComfyUI: start it with --use-sage-attention.")


def _lora_chain(graph: Graph, loader: Node) -> list[Node]:
    """The LoRA nodes of a loader in the order in which the wrapper applies them."""
    chain: list[Node] = []
    found = graph.source(loader.inputs.get("lora"))
    while found is not None and found.type.startswith("CogVideoLoraSelect"):
        chain.append(found)
        found = graph.source(found.inputs.get("prev_lora"))
    return chain[::-1]


def _with_loras(work: Work, loader: Node, model: Link) -> Link:
    """`model` with the LoRAs of its loader.

    The wrapper fuses with 1 / rank where one of the names is DimensionX's and the last LoRA is to be fused; else it
    does not scale. Source: loadmodel in its model_loading.py.
    """
    chain = _lora_chain(work.graph, loader)
    if not chain:
        return model
    names = [work.text(node, "lora") for node in chain]
    fuses = work.graph.constant(chain[-1].inputs["fuse_lora"])
    is_scaled = any(part in name.lower() for name in names for part in _SCALED)
    if is_scaled and not isinstance(fuses, bool):
        raise work.refuse(chain[-1], "its fuse_lora comes from another node. Choose it and migrate again.")
    by_rank = is_scaled and fuses
    for node, name in zip(chain, names, strict=True):
        model = Link(
            work.add(
                "CogVideoXApplyLora",
                node,
                model=model,
                lora_name=name,
                strength=node.inputs["strength"],
                scale=_BY_RANK if by_rank else _AS_TRAINED,
            ).id,
            0,
        )
        if by_rank:
            work.changed(node, f"{shown(name)} is applied at the scale {_BY_RANK}, as the wrapper fuses it.")
        if by_rank and len(chain) > 1:
            work.changed(
                node, "the wrapper scales all LoRAs by the rank of the last; here each is scaled by its own rank."
            )
        if node.type == "CogVideoLoraSelect" and not work.options.wrapper_folder:
            work.changed(
                node, f"{shown(name)} is looked for in models/loras. The wrapper has it in models/CogVideo/loras."
            )
    return model


# Prompts


def load_text_encoder(work: Work, value: object, user: Node) -> Link:
    """The CLIP that a prompt is encoded with. Raises CannotConvert."""
    link = work.graph.resolve(value)
    loader = work.graph.nodes[link.node] if isinstance(link, Link) else None
    if loader is None:
        raise work.refuse(user, "nothing is connected to its input clip. Connect a CLIPLoader and migrate again.")
    if loader.type == "CogVideoTextEncode":  # its second output is the CLIP that it was given
        output = Link(loader.id, 1)
        if output not in work.graph.moved:
            with work.once(loader, "clip"):
                work.graph.moved[output] = load_text_encoder(work, loader.inputs.get("clip"), loader)
        return work.graph.moved[output]
    if (loader.id, "clip") in work.made:
        return work.made[loader.id, "clip"]
    name = loader.widget(0, "clip_name")
    if loader.type != "CLIPLoader" or not isinstance(name, str):
        raise work.refuse(user, f"its clip comes from {loader.label}; use ComfyUI's CLIPLoader with a T5.")
    file = name.replace("\\", "/")
    clip = Link(work.add("CogVideoXLoadTextEncoder", loader, text_encoder_name=file, weight_dtype="default").id, 0)
    work.changed(loader, f"{shown(file)} is loaded by Load CogVideoX Text Encoder, with 226 tokens as in diffusers.")
    work.made[loader.id, "clip"] = clip
    return clip


def conditioning_of(work: Work, node: Node, name: str) -> Link:
    """The CONDITIONING at an input of a wrapper node. Raises CannotConvert."""
    found = work.graph.nodes[work.needed(node, name, slot=0).node]
    if (found.id, "conditioning") in work.made:
        return work.made[found.id, "conditioning"]
    convert = {"CogVideoTextEncode": _encode_text, "CogVideoTextEncodeCombine": _combine}.get(found.type)
    if convert is None:
        raise work.refuse(node, f"its {name} comes from {found.label}, which is not a prompt of the wrapper.")
    with work.once(found, "conditioning"):
        made = convert(work, found)
    work.made[found.id, "conditioning"] = work.graph.moved[Link(found.id, 0)] = made
    return made


def _encode_text(work: Work, node: Node) -> Link:
    clip = load_text_encoder(work, node.inputs.get("clip"), node)
    work.graph.moved[Link(node.id, 1)] = clip
    text, strength = node.inputs["prompt"], work.graph.constant(node.inputs["strength"])
    if strength != 1:
        work.lacks(node, f"strength {shown(strength)} has no counterpart: a prompt has the strength 1.")
    known = work.graph.constant(text)
    # The wrapper's tokenizer always reads (word:1.2) as a weight, and a text without brackets holds none.
    weights = not isinstance(known, str) or "(" in known or ")" in known
    if weights:
        work.changed(node, "prompt_weights is on: the wrapper reads (word:1.2) as a weight.")
    return Link(work.add("CogVideoXEncodeText", node, clip=clip, text=text, prompt_weights=weights).id, 0)


def _combine(work: Work, node: Node) -> Link:
    first, second = conditioning_of(work, node, "conditioning_1"), conditioning_of(work, node, "conditioning_2")
    mode = work.graph.constant(node.inputs["combination_mode"])
    if mode == "concatenate":
        added = work.add("ConditioningConcat", node, conditioning_to=first, conditioning_from=second)
        work.changed(node, "the negative prompt is not padded with zeros to the length of the two prompts together.")
        return Link(added.id, 0)
    ratio = 0.5 if mode == "average" else work.graph.constant(node.inputs["weighted_average_ratio"])
    if not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
        raise work.refuse(node, f"a ratio of {shown(ratio)} has no counterpart: ConditioningAverage takes 0 to 1.")
    added = work.add(
        "ConditioningAverage", node, conditioning_to=second, conditioning_from=first, conditioning_to_strength=ratio
    )
    return Link(added.id, 0)


# Control nets


def with_control_net(work: Work, user: Node, positive: Link, negative: Link) -> tuple[Link, Link]:
    """Both prompts of a sampler with its control net, if it has one. Raises CannotConvert."""
    node = work.graph.source(user.inputs.get("controlnet"))
    if node is None:
        return positive, negative
    if node.type != "CogVideoControlNet":
        raise work.refuse(user, f"its controlnet comes from {node.label}, which is not a node of the wrapper.")
    loader = work.graph.nodes[work.needed(node, "controlnet").node]
    added = work.add(
        "CogVideoXApplyControlNet",
        node,
        positive=positive,
        negative=negative,
        control_net=load_control_net(work, loader, node),
        control_video=work.needed(node, "images"),
        strength=node.inputs["control_strength"],
        start_percent=node.inputs["control_start_percent"],
        end_percent=node.inputs["control_end_percent"],
    )
    return Link(added.id, 0), Link(added.id, 1)


def load_control_net(work: Work, loader: Node, user: Node) -> Link:
    """CogVideoXLoadControlNet. Raises CannotConvert."""
    if (loader.id, "control_net") in work.made:
        return work.made[loader.id, "control_net"]
    if loader.type != "DownloadAndLoadCogVideoControlNet":
        raise work.refuse(user, f"its controlnet comes from {loader.label}, which is not a control net of the wrapper.")
    name = work.text(loader, "model").rpartition("/")[2]
    if not work.options.wrapper_folder:
        work.changed(
            loader, f"the control net is looked for as {shown(name)} in models/controlnet: put its folder there."
        )
    made = Link(work.add("CogVideoXLoadControlNet", loader, control_net_name=name).id, 0)
    work.made[loader.id, "control_net"] = work.graph.moved[Link(loader.id, 0)] = made
    return made

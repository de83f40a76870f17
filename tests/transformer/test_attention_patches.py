"""Patches of other nodes in the transformer, against diffusers' with the papers' formulas hooked into it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy_extras.nodes_pag as pag
import pytest
import torch

from cogvideox.host.stock_patches import serve_patches, unserved_patches
from cogvideox.model_loaders.load_model import load_model
from cogvideox.samplers.follow import Followed, _forward_following
from cogvideox.tests.support import TEXT_TO_VIDEO, check_parity, reference_transformer, relative_error
from cogvideox.tests.transformer.test_dit import reference_rotary

pytestmark = pytest.mark.usefixtures("inference")
SIZE = (4, 8, 12)  # latent frames, height, width
TEXT = 226  # tokens, in front of the video's


class Both:
    """Our transformer and diffusers' on the same weights and the same input: a batch of prompt and negative prompt."""

    def __init__(self, folder: Path):
        self.theirs = reference_transformer(folder)
        self.model = load_model(folder, "fp32")
        self.ours = self.model.model.diffusion_model
        generator = torch.Generator().manual_seed(1)
        config = self.theirs.config
        self.latents = torch.randn(1, config.in_channels, *SIZE, generator=generator).repeat(2, 1, 1, 1, 1)
        self.context = torch.randn(2, TEXT, config.text_embed_dim, generator=generator)
        self.timestep = torch.tensor([500, 500])

    def reference(self) -> torch.Tensor:
        return self.theirs(
            self.latents.transpose(1, 2),
            self.context,
            self.timestep,
            image_rotary_emb=reference_rotary(self.theirs, SIZE),
            return_dict=False,
        )[0].transpose(1, 2)

    def __call__(self, model: Any = None, **options: Any) -> torch.Tensor:
        """Our prediction, with the patches of `model` or with these transformer_options."""
        found = {} if model is None else model.model_options["transformer_options"]
        options = {"cond_or_uncond": [0, 1], **found, **options}
        return self.ours(self.latents, self.timestep, context=self.context, transformer_options=options)

    def patched(self, kind: str, patch: Callable) -> torch.Tensor:
        model = self.model.clone()
        model.set_model_patch(patch, kind)
        return self(model)


@pytest.fixture(scope="module", params=TEXT_TO_VIDEO)
def both(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Both:
    with torch.inference_mode():
        return Both(tiny_pipelines[request.param])


def normalized_guidance(positive: torch.Tensor, negative: torch.Tensor, scale: float, tau: float, alpha: float):
    """Chen et al. 2025 (Normalized Attention Guidance), eq. 8 to 10, token by token. Its phi is scale - 1."""
    extrapolated = positive + (scale - 1) * (positive - negative)
    ratio = extrapolated.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    normalized = torch.where(ratio > tau, extrapolated * tau / ratio, extrapolated)
    return alpha * normalized + (1 - alpha) * positive


@pytest.mark.parametrize(("scale", "tau", "alpha"), [(5.0, 1.5, 0.5), (11.0, 2.5, 0.25), (2.0, 10.0, 1.0)])
def test_nag_is_the_papers(both: Both, scale: float, tau: float, alpha: float) -> None:
    """ComfyUI's node on our attention equals the paper's formula on diffusers': on the video's tokens of every block,
    before the output layer. As in the authors' code, prompt and negative prompt share the video's features."""
    nag = pytest.importorskip("comfy_extras.nodes_nag")  # older versions of ComfyUI have no such node

    def guide(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        positive, negative = inputs[0][:, TEXT:]
        guided = normalized_guidance(positive, negative, scale, tau, alpha)
        return (torch.cat([inputs[0][:, :TEXT], guided.expand(2, -1, -1)], dim=1),)

    handles = [block.attn1.to_out[0].register_forward_pre_hook(guide) for block in both.theirs.transformer_blocks]
    try:
        want = both.reference()
    finally:
        for handle in handles:
            handle.remove()
    got = both(nag.NAGuidance.execute(both.model, scale, alpha, tau).args[0])
    check_parity("normalized attention guidance (NAG)", got, want, 2e-6)
    assert relative_error(got, both()) > 1e-3


def test_pag_is_identity_attention_in_the_middle(both: Both) -> None:
    """Perturbed attention: in the block in the middle each video token attends to itself alone, and the text as
    ever."""
    middle = both.theirs.transformer_blocks[len(both.theirs.transformer_blocks) // 2].attn1
    values: list[torch.Tensor] = []
    handles = [
        middle.to_v.register_forward_hook(lambda module, inputs, out: values.append(out)),
        middle.to_out[0].register_forward_pre_hook(
            lambda module, inputs: (torch.cat([inputs[0][:, :TEXT], values[-1][:, TEXT:]], dim=1),)
        ),
    ]
    try:
        want = both.reference()
    finally:
        for handle in handles:
            handle.remove()
    # What the node hands to ComfyUI for its additional pass, taken where it calls ComfyUI.
    model, seen = pag.PerturbedAttentionGuidance.execute(both.model, 3.0).args[0], []
    (guidance,) = model.model_options["sampler_post_cfg_function"]
    with pytest.MonkeyPatch.context() as patching:
        given = "comfy.samplers.calc_cond_batch"
        patching.setattr(given, lambda model, conds, x, sigma, options: [seen.append(options) or x])
        keys = ("model", "cond_denoised", "cond", "denoised", "sigma", "input")
        guidance({key: torch.zeros(1) for key in keys} | {"model_options": model.model_options})
    got = both(**seen[0]["transformer_options"])
    check_parity("perturbed attention (PAG)", got, want, 2e-6)
    assert relative_error(got, both()) > 1e-3


def test_replacement_by_the_same_attention(both: Both) -> None:
    """A function in place of the attention gets what it needs to compute it: the result stays the same."""

    def same(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        q, k, v = (x.unflatten(2, (extra["n_heads"], extra["dim_head"])).transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    model = both.model.clone()
    for index in range(len(both.ours.transformer_blocks)):
        model.set_model_attn1_replace(same, "double_block", index)
    assert relative_error(both(model), both()) < 1e-6


def test_arguments_of_patches(both: Both) -> None:
    """What patches for ComfyUI's models with joint attention rely on; left as it is, nothing changes by a bit."""
    seen: dict[str, list] = {}

    def note(kind: str, value: Any) -> None:
        seen.setdefault(kind, []).append(value)

    def before(q, k, v, pe=None, attn_mask=None, extra_options={}):  # noqa: ANN001, ANN202
        note("before", ((q.shape, k.shape, v.shape), None if pe is None else pe.shape, attn_mask, extra_options))
        return {"q": q, "k": k, "v": v, "pe": pe}

    def after(out: torch.Tensor, extra_options: dict) -> torch.Tensor:
        note("after", (out.shape, extra_options["img_slice"]))
        return out

    def block(args: dict) -> dict:
        note("block", (args["block_index"], args["img"].shape, args["txt"].shape, args["x"].shape))
        return args

    plain = both()
    for kind, patch in (("attn1_patch", before), ("attn1_output_patch", after), ("double_block", block)):
        assert torch.equal(both.patched(kind, patch), plain)
    assert torch.equal(both.patched("post_input", lambda args: note("input", args["img"].shape) or args), plain)
    config, blocks = both.ours.config, len(both.ours.transformer_blocks)
    dim, head_dim = config.num_attention_heads * config.attention_head_dim, config.attention_head_dim
    video = SIZE[0] // (config.patch_size_t or 1) * (SIZE[1] // 2) * (SIZE[2] // 2)
    count = TEXT + video
    shapes, positions, mask, extra = seen["before"][1]
    assert {tuple(shape) for shape in shapes} == {(2, config.num_attention_heads, count, head_dim)} and mask is None
    assert positions == ((1, 1, count, head_dim // 2, 2, 2) if config.use_rotary_positional_embeddings else None)
    assert extra["block_index"] == 1 and extra["total_blocks"] == blocks and extra["cond_or_uncond"] == [0, 1]
    assert extra["n_heads"] == config.num_attention_heads and extra["img_slice"] == [TEXT, count]
    assert seen["after"] == [((2, count, dim), [TEXT, count])] * blocks
    assert [entry[0] for entry in seen["block"]] == [*range(blocks)]
    assert seen["block"][0][1:] == ((2, video, dim), (2, TEXT, dim), (2, config.in_channels, *SIZE))
    assert seen["input"] == [(2, video, dim)]


def test_patches_change_what_they_return(both: Both) -> None:
    """Each kind has an effect, and on the video alone where only that is changed; text tokens may be added."""
    plain = both()

    def halved(q, k, v, pe, attn_mask, extra_options):  # noqa: ANN001, ANN202
        return {"q": q * 0.5}

    def only_text(args: dict) -> dict:
        return {**args, "txt": torch.cat([args["txt"], args["txt"][:, :3]], dim=1)}

    for kind, patch in (
        ("attn1_patch", halved),
        ("attn1_output_patch", lambda out, extra_options: out * 0.5),
        ("double_block", lambda args: {"img": args["img"] * 1.1}),
        ("post_input", only_text),
    ):
        assert relative_error(both.patched(kind, patch), plain) > 1e-4, kind


def test_two_patches_of_one_kind_act_in_turn(both: Both) -> None:
    """The second gets what the first has returned."""
    model = both.model.clone()
    for factor in (0.5, 3.0):
        model.set_model_attn1_output_patch(lambda out, extra_options, factor=factor: out * factor)
    assert torch.equal(both(model), both.patched("attn1_output_patch", lambda out, extra_options: out * 1.5))


def test_patch_in_another_form_is_left_out() -> None:
    """ToMe's two patches are of U-Nets: the second alone would fail on what the first has not left behind. A patch of
    Wan gets one dictionary. Both are named, with their kinds."""
    tome = pytest.importorskip("comfy_extras.nodes_tomesd")
    options: dict[str, Any] = {"patches": {"attn2_patch": [max]}}

    class Model:
        def clone(self) -> "Model":
            return self

        def set_model_attn1_patch(self, patch: Callable) -> None:
            options["patches"]["attn1_patch"] = [patch, lambda args: args]

        def set_model_attn1_output_patch(self, patch: Callable) -> None:
            options["patches"]["attn1_output_patch"] = [patch]

    tome.TomePatchModel.execute(Model(), 0.5)
    served = serve_patches(options, 2)
    assert served is not None and not served.attention[0].before and not served.attention[0].after
    found = list(unserved_patches(options, 2))
    assert ("TomePatchModel", "attn1_patch") in found and {kind for _, kind in found} == {"attn1_patch", "attn2_patch"}


def test_places_of_replacements() -> None:
    """The block in the middle, or a block by its number; a place that no block has is named."""
    options: dict[str, Any] = {"transformer_options": {}}
    places = ((min, "middle", 0), (max, "double_block", 3), (max, "double_block", 42), (max, "input", 4))
    for patch, name, number in places:
        options = comfy.model_patcher.set_model_options_patch_replace(options, patch, "attn1", name, number)
    options = options["transformer_options"]
    served = serve_patches(options, 42)
    assert served is not None
    assert [served.attention[index].instead for index in (0, 3, 21)] == [None, max, min]
    assert {kind for _, kind in unserved_patches(options, 42)} == {"attn1 in double_block 42", "attn1 in input 4"}


def test_nothing_is_computed_without_patches() -> None:
    """The exact path: there is nothing to call, whatever else replaces blocks."""
    assert serve_patches({}, 2) is None
    assert serve_patches({"patches": {}, "patches_replace": {"dit": {("double_block", 0): max}}}, 2) is None


def test_nag_beside_a_followed_video(tiny_pipelines: dict[str, Path]) -> None:
    """Follow Video doubles the batch: prompt and negative prompt of the run stand in its first half, and a patch that
    looks for them finds them there."""
    both, seen = Both(tiny_pipelines["5b"]), []

    def guide(out: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        size = out.shape[0] // len(extra_options["cond_or_uncond"])
        seen.append((size, extra_options["cond_or_uncond"]))
        return out

    model = both.model.clone()
    model.set_model_attn1_output_patch(guide)
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [0, 1]}
    followed = Followed((-1, 500, 999), tuple(torch.randn(3, 1, 16, *SIZE)), 999.0, 0.0)

    def executor(x, timestep, context, ofs, options, control=None):  # noqa: ANN001, ANN202
        return both.ours(x, timestep, context=context, transformer_options=options)

    _forward_following(followed, executor, both.latents, both.timestep, both.context, None, options)
    assert seen == [(1, [0, 1, 0, 1])] * len(both.ours.transformer_blocks)

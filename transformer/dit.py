"""CogVideoX's diffusion transformer as ComfyUI calls it."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.patcher_extension
import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel

from ..errors import UserError
from ..host.async_copies import pinned, upload
from ..host.compat import (
    NoMemoryLeftError,
    free_after_out_of_memory,
    is_out_of_memory,
    prefetched,
    throw_if_interrupted,
)
from ..host.memory_rules import free_in_step
from ..host.protocols import TransformerConfig
from ..host.stock_patches import ComparedOptions, ServedPatches, serve_patches
from ..keys import read_compiled_blocks, read_positions, read_shared_tokens
from .block import block_forward, has_lean_mode, replaced_block
from .memory_modes import DEFAULT, LADDER, Mode, modes_to_try, no_memory_left, step_bytes
from .positions import forget_tables, resampled_table, rotary_table, sincos_table
from .token_passes import expects_kernels, may_overwrite, modulate


class CogVideoXDiT(CogVideoXTransformer3DModel):
    """diffusers' modules and parameter names with ComfyUI's calling convention.

    diffusers' own forward is not used: it calls neither ComfyUI's attention functions nor its hooks.
    """

    config: TransformerConfig
    # diffusers' ModelMixin defines both as read-only properties. ComfyUI reads the dtype (BaseModel.get_dtype), which
    # sockets.model.build_dit assigns; ModelPatcher assigns the device of a module that it is given.
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    # Whether they are in this process: parallel.remote_dit has a model whose weights are in others.
    has_weights: bool = True
    # Whether _add_positions stretches a sincos table of the model's own size; sockets.model sets it by the family.
    stretches_positions: bool = False
    # The memory modes in which no step of this run has run out of memory.
    _modes: tuple[Mode, ...] = LADDER
    # Of this run: the learned table of positions and its copy in host memory; and the latents' shape with the number of
    # text tokens of the last step, whose table of positions is there still.
    _host_table: tuple[torch.Tensor, torch.Tensor] | None = None
    _last_size: tuple[int, ...] = ()

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] = {},
        ofs: torch.Tensor | None = None,
        compared: ComparedOptions | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Predict v.

        x: [B, in_channels, T, H, W] in the compute dtype: scaled latents, variance preserving, and the concatenated
        channels. timestep: [B], 0 .. 999. context: [B, text tokens, text width]. ofs: [B], CogVideoX 1.5 image to video
        only. control: {"input": [B, video tokens, dim] for each of the first blocks}, added to their outputs.
        compared: of transformer_options, where torch.compile has compiled all of this.
        Returns [B, out_channels, T, H, W].

        Raises UserError where H or W is not a multiple of the patch size, or a learned table does not fit.
        """
        # Wrappers are functions of other packs and of samplers.follow around _forward. They get its arguments by
        # position, in the order of ComfyUI's own CogVideoX class (comfy/ldm/cogvideo/model.py, forward).
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        if compared is not None:
            transformer_options = {**transformer_options, **compared.entries}
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timestep, context, ofs, transformer_options, control=control
        )

    def forget_run(self) -> None:
        """Release what was computed for a run (positions.forget_tables), and forget how it went."""
        forget_tables()
        self._modes, self._host_table, self._last_size = LADDER, None, ()

    def _forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        ofs: torch.Tensor | None,
        transformer_options: dict[str, Any],
        control: dict[str, Any] | None = None,
        **_: Any,
    ) -> torch.Tensor:
        arguments = x, timestep, context, ofs, transformer_options, control
        if not may_overwrite():  # a training, or torch.compile's graph: both plan their memory by themselves
            return self._predict(*arguments, DEFAULT)
        text_tokens, size = context.shape[1], (*x.shape[2:], context.shape[1])
        # What is taken already is no longer free.
        held = self._table_bytes(x.shape, text_tokens) if size == self._last_size else 0

        def needed(mode: Mode) -> float:
            return self.step_bytes(mode, x.shape, text_tokens, x.dtype, x.device, transformer_options) - held

        ladder = self._modes if has_lean_mode(self.transformer_blocks, transformer_options) else LADDER[:1]
        modes = modes_to_try(ladder, needed, free_in_step(x.device))
        if ranks := read_shared_tokens(transformer_options):
            # All exchange the same heads, and none can begin again alone.
            modes = (LADDER[ranks.agree(LADDER.index(modes[0]))],)
        for mode, following in zip(modes, (*modes[1:], None)):
            try:
                predicted = self._predict(*arguments, mode)
                self._last_size = size
                return predicted
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if following is None:
                    raise NoMemoryLeftError(no_memory_left(mode, needed(mode), x.shape)) from error
            # Not inside `except`, where the traceback keeps the tensors of every function that the error came through.
            free_after_out_of_memory()
            self._modes = ladder[ladder.index(following) :]
            logging.warning(
                f"A step of CogVideoX in memory mode {mode.name} needs more memory than there is: the run goes on in "
                f"mode {following.name}, a little slower and with the same result but for rounding."
            )
        raise AssertionError("there is always a mode to try")

    def _predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        ofs: torch.Tensor | None,
        transformer_options: dict[str, Any],
        control: dict[str, Any] | None,
        mode: Mode,
    ) -> torch.Tensor:
        # CogVideoX 1.5 takes latent frames in pairs. A run gets a frame of noise in front where its count is odd
        # (samplers.outer_sample). An odd count comes here only from training, or from ComfyUI's context windows, which
        # put a frame in front of a window and drop it again. Repeated, that first frame is paired with itself, and the
        # pairs of the others stay as they were.
        extra = -x.shape[2] % (self.config.patch_size_t or 1)
        x = torch.cat([x[:, :, :1].expand(-1, -1, extra, -1, -1), x], dim=2) if extra else x
        frames, height, width = x.shape[2:]
        grid = self.token_grid((frames, height, width), transformer_options)
        embedding = self._embed_time(timestep, ofs, x.dtype)
        text, video = self._add_positions(self.patch_embed.text_proj(context), self._embed_patches(x, grid), grid)
        patches = serve_patches(transformer_options, len(self.transformer_blocks))
        for patch in patches.input if patches else ():
            out = patch({"img": video, "txt": text, "x": x, "transformer_options": transformer_options})
            text, video = out["txt"], out["img"]
        riflex = read_positions(transformer_options)["riflex"]
        # After the patches, which may add tokens to the text.
        rotary = self._rotary(grid, text.shape[1], riflex, x.device)
        ranks = read_shared_tokens(transformer_options)
        if ranks is not None:
            text, video, rotary = ranks.share(text, video, rotary)
        text, video = self._run_blocks(x, text, video, embedding, rotary, control, transformer_options, patches, mode)
        # The shift comes first: diffusers' AdaLayerNorm splits the output of its linear layer into (shift, scale) for
        # CogVideoX (chunk_dim=1), but into (scale, shift) for other models.
        shift, scale = self.norm_out.linear(F.silu(embedding)).chunk(2, dim=1)
        video = self.proj_out(modulate(self.norm_out.norm(self.norm_final(video)), scale, shift))
        video = video if ranks is None else ranks.gather(video)
        return self._unpatchify(video, grid)[:, :, extra:]

    def step_bytes(
        self,
        mode: Mode,
        latent_shape: Sequence[int],
        text_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        transformer_options: dict[str, Any] = {},
    ) -> float:
        """Bytes of activations that a forward of latents [B, C, T, H, W] in `dtype` holds at its peak on `device`, with
        the table of positions, which is there for all of a run."""
        c, batch, video = self.config, latent_shape[0], self.video_tokens(latent_shape)
        dim = c.num_attention_heads * c.attention_head_dim
        # Compiled blocks plan their memory by themselves.
        is_eager = not read_compiled_blocks(transformer_options)
        ranks = read_shared_tokens(transformer_options)
        parts = 1 if ranks is None else ranks.size
        has_kernels = is_eager and expects_kernels(self.transformer_blocks, device, dtype, batch * video // parts * dim)
        values = batch * -(-(video + text_tokens) // parts) * dim
        return step_bytes(mode, values, dtype.itemsize, has_kernels) + self._table_bytes(latent_shape, text_tokens)

    def _table_bytes(self, latent_shape: Sequence[int], text_tokens: int) -> int:
        """Of the table of positions, which the first step of a run computes in fp32 and the others find."""
        c, video, values = self.config, self.video_tokens(latent_shape), 0
        if c.use_rotary_positional_embeddings:  # a matrix of 2 x 2 for each pair of a head's values
            values = 2 * (video + text_tokens) * c.attention_head_dim
        elif not c.use_learned_positional_embeddings:
            values = video * c.num_attention_heads * c.attention_head_dim
        return values * torch.float32.itemsize

    def video_tokens(self, latent_shape: Sequence[int]) -> int:
        """Each of patch_size x patch_size latent pixels in patch_size_t latent frames."""
        return math.prod(latent_shape[2:]) // (self.config.patch_size**2 * (self.config.patch_size_t or 1))

    def token_grid(
        self, latent_size: tuple[int, int, int], transformer_options: dict[str, Any] = {}
    ) -> tuple[int, int, int]:
        """Latent (T, H, W) -> tokens in (time, height, width).

        Raises UserError where the model cannot take this size, naming the nearest sizes that it can.
        """
        patch, patch_t = self.config.patch_size, self.config.patch_size_t or 1
        frames, height, width = latent_size
        sides = (("height", height), ("width", width))
        if problems := [_side_problem(name, size, patch) for name, size in sides if size % patch]:
            raise UserError(" ".join(problems))
        resample = read_positions(transformer_options)["resample"]
        if self.config.use_learned_positional_embeddings and not resample:
            self._require_learned_size(frames, height, width)
        return frames // patch_t, height // patch, width // patch

    def native_size(self) -> tuple[int, int, int]:
        """The latent (T, H, W) that the model was trained with."""
        c = self.config
        return (c.sample_frames - 1) // c.temporal_compression_ratio + 1, c.sample_height, c.sample_width

    def _require_learned_size(self, frames: int, height: int, width: int) -> None:
        fits = self.native_size()
        if (frames, height, width) != fits:
            ratio = self.config.temporal_compression_ratio
            own_width, own_height, own_frames = fits[2] * 8, fits[1] * 8, (fits[0] - 1) * ratio + 1
            steps = (
                f"Set width to {own_width}." if width != fits[2] else "",
                f"Set height to {own_height}." if height != fits[1] else "",
                f"Set frames to {own_frames}." if frames != fits[0] else "",
            )
            # A form, which has no nodes, shows the first line alone.
            lines = (
                f"This model's learned position table fits {own_width} x {own_height} pixels with {own_frames} frames; "
                f"the video is {width * 8} x {height * 8} with {(frames - 1) * ratio + 1}.",
                "For another size the table has to be stretched, at some loss of quality.",
            )
            raise UserError(
                "\n".join((" ".join(filter(None, (lines[0], *steps))), lines[1])), advice="stretch positions"
            )

    def _embed_time(self, timestep: torch.Tensor, ofs: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        # time_proj computes sines and cosines of the fp32 timestep; only they are cast. The timestep itself must not be
        # in bf16, whose eight significant bits step by 4 in this range: 999 would become 1000.
        embedding = self.time_embedding(self.time_proj(timestep).to(dtype))
        if self.ofs_proj is not None and self.ofs_embedding is not None:
            embedding = embedding + self.ofs_embedding(self.ofs_proj(ofs).to(dtype))
        return embedding

    def _embed_patches(self, x: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """[B, C, T, H, W] -> [B, video tokens, dim]."""
        frames, height, width = grid
        c, embed = self.config, self.patch_embed
        p = c.patch_size
        if c.patch_size_t is None:
            # The convolution is two-dimensional and takes frame by frame: [B, C, T, H, W] -> [B * T, D, H / p, W / p].
            patches = embed.proj(x.transpose(1, 2).flatten(0, 1))
            return patches.flatten(2).transpose(1, 2).reshape(x.shape[0], frames * height * width, -1)
        # CogVideoX 1.5 embeds a patch by a linear layer over its flattened values. Their order, (C, pt, p, p), is the
        # one that its weights were trained with (diffusers embeddings.py, CogVideoXPatchEmbed.forward).
        # [B, C, T/pt, pt, H/p, p, W/p, p] -> [B, T/pt, H/p, W/p, C, pt, p, p]
        patches = x.unflatten(4, (width, p)).unflatten(3, (height, p)).unflatten(2, (frames, c.patch_size_t))
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7)
        return embed.proj(patches.flatten(4, 7).flatten(1, 3))

    def _add_positions(
        self, text: torch.Tensor, video: torch.Tensor, grid: tuple[int, int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Absolute positions, where the model has them: a learned table for text and video, sincos for video alone."""
        c = self.config
        frames, height, width = self.native_size()
        native = frames, height // c.patch_size, width // c.patch_size
        if c.use_learned_positional_embeddings:
            table = self._learned_positions(video)
            text_table, video_table = table.split([c.max_text_seq_length, table.shape[1] - c.max_text_seq_length], 1)
            return text + text_table[:, : text.shape[1]], video + resampled_table(video_table[0], native, grid)
        if c.use_rotary_positional_embeddings:
            return text, video
        # 2b makes a sincos table for any size. CogVideoX-Fun's fine-tunes of 2b make one of the height and width that
        # they were trained with and stretch it instead. Source: CogVideoX-Fun models/transformer3d.py and diffusers
        # embeddings.py, CogVideoXPatchEmbed.
        counted = (grid[0], *native[1:]) if self.stretches_positions else grid
        scales = c.spatial_interpolation_scale, c.temporal_interpolation_scale
        table = sincos_table(video.shape[-1], counted, *scales, video.device)
        return text, video + resampled_table(table, counted, grid).to(video.dtype)

    def _learned_positions(self, like: torch.Tensor) -> torch.Tensor:
        """The learned table [1, text + native tokens, dim], in the dtype and on the device of `like`.

        Where ComfyUI streams the layers' parameters, this buffer stays on the host, and is copied in each forward: kept
        on the card it would displace as many bytes of weights, which would be copied instead. What is kept for the run
        is a copy for which the host does not wait.
        """
        table = self.patch_embed.get_buffer("pos_embedding")
        if table.device == like.device or not may_overwrite():
            return table.to(like)
        if self._host_table is None or self._host_table[0] is not table or self._host_table[1].dtype != like.dtype:
            self._host_table = table, pinned(table.to(like.dtype))
        return upload(self._host_table[1], like)

    def _rotary(
        self, grid: tuple[int, int, int], text_tokens: int, riflex: bool, device: torch.device
    ) -> torch.Tensor | None:
        c = self.config
        if not c.use_rotary_positional_embeddings:
            return None
        base = (c.sample_height // c.patch_size, c.sample_width // c.patch_size) if c.patch_size_t is None else None
        return rotary_table(c.attention_head_dim, grid, base, text_tokens, device, riflex)

    def _run_blocks(
        self,
        x: torch.Tensor,
        text: torch.Tensor,
        video: torch.Tensor,
        embedding: torch.Tensor,
        rotary: torch.Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any],
        patches: ServedPatches | None,
        mode: Mode,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        additions: Sequence[torch.Tensor | None] = (control or {}).get("input", [])  # of CogVideoXControl.get_control
        replacements = transformer_options.get("patches_replace", {}).get("dit", {})
        # Attention overrides and block replacements read from these entries which block calls them. ComfyUI's own
        # models whose blocks take text and image tokens together set the same ones (comfy/ldm/lens/model.py).
        options = {**transformer_options, "total_blocks": len(self.transformer_blocks), "block_type": "double"}
        options["img_slice"] = [text.shape[1], text.shape[1] + video.shape[1]]  # of the video in the joint sequence
        # A function of another node may keep the tokens that it was given: a cache compares them with later ones.
        in_sampling = may_overwrite()  # not a training, or torch.compile's graph of the whole
        in_place = in_sampling and not replacements and not patches
        compiled = read_compiled_blocks(transformer_options)
        compute = compiled.forward_of(self.config, block_forward) if compiled and in_sampling else block_forward
        for index, block in enumerate(prefetched(self.transformer_blocks, video.device, transformer_options)):
            if in_sampling:  # within a block, each of ComfyUI's layers looks (comfy.ops.run_every_op)
                throw_if_interrupted()
            options["block_index"] = index
            attention = patches.attention[index] if patches else None
            if ("double_block", index) in replacements:
                original = partial(compute, block)
                text, video = replaced_block(
                    replacements[("double_block", index)], original, text, video, embedding, rotary, options, attention
                )
            else:
                text, video = compute(block, text, video, embedding, rotary, options, attention, in_place, mode)
            for patch in patches.block_output if patches else ():
                args = {"img": video, "txt": text, "x": x, "vec": embedding, "block_index": index}
                out = patch({**args, "transformer_options": options})
                text, video = out.get("txt", text), out["img"]
            addition = additions[index] if index < len(additions) else None
            if addition is not None:
                # A control net computes in its own dtype, which need not be the model's.
                video = video + addition.to(video)
        return text, video

    def _unpatchify(self, patches: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """[B, video tokens, C * patch volume] -> [B, C, T, H, W]."""
        p, patch_t = self.config.patch_size, self.config.patch_size_t
        out = patches.unflatten(1, grid)
        if patch_t is None:
            # A frame axis of length 1, so that one permutation serves both kinds of model.
            out = out.unflatten(-1, (-1, 1, p, p))
        else:
            out = out.unflatten(-1, (-1, patch_t, p, p))
        # [B, T', H', W', C, pt, p, p] -> [B, C, T', pt, H', p, W', p]
        return out.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _side_problem(name: str, size: int, patch: int) -> str:
    """What is wrong with a side of a latent that does not divide by `patch`, in a sentence with the nearest sizes."""
    below, above = (size - size % patch) * 8, (size - size % patch + patch) * 8
    if not below:
        return f"The latent's {name} of {size * 8} pixels is less than the smallest of a video: use {above} or more."
    return f"The latent's {name} of {size * 8} pixels does not divide by {8 * patch}: use {below} or {above}."

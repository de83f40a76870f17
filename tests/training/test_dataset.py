"""Datasets from folder to tensors: what is encoded, what is taken from the cache, and what bad input leads to."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nano import world
from cogvideox.tests.clip_files import write_video
from cogvideox.tests.support import check_parity
from cogvideox.training import dataset
from cogvideox.training.clips import CACHE, DatasetSpec

SPEC = DatasetSpec(width=64, height=64, frames=9)
SCENE = world.Scene("circle", "red", "small", "left", ("blue",))


def write_clip(path: Path, frames: int = 9, width: int = 64, seed: int = 0) -> Path:
    """A lossless clip of the synthetic world at 8 frames a second, with its caption in a text file."""
    pictures = world.render(SCENE, np.random.default_rng(seed), frames, width, 64)
    write_video(path, pictures, "ffv1", "bgr0", world.FPS)
    path.with_suffix(".txt").write_text(f"A red circle, number {seed}.")
    return path


def reference_vae(pipeline: Path) -> Any:
    """diffusers' own."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX.from_pretrained(pipeline / "vae").eval()


class Models:
    """VAE and CLIP of a tiny checkpoint; `encoded` counts what passes through them."""

    def __init__(self, folder: Path):
        self.vae = load_vae(folder, "fp32")
        self.clip = load_text_encoder(folder, "fp32")
        self.encoded = {"vae": 0, "clip": 0}
        self._count(self.vae, "_moments", "vae")
        self._count(self.clip, "encode_from_tokens_scheduled", "clip")

    def _count(self, holder: object, name: str, key: str) -> None:
        original = getattr(holder, name)

        def counted(*args: object, **kwargs: object) -> object:
            self.encoded[key] += 1
            return original(*args, **kwargs)

        setattr(holder, name, counted)

    def build(self, folder: Path, spec: DatasetSpec = SPEC, **more: Any) -> tuple[dataset.Dataset, dict[str, int]]:
        """The dataset, and what was encoded for it."""
        self.encoded.update(vae=0, clip=0)
        return dataset.build_dataset(folder, spec, self.vae, self.clip, **more), dict(self.encoded)


@pytest.fixture(scope="module")
def models(tiny_pipelines: dict[str, Path]) -> Models:
    return Models(tiny_pipelines["5b-I2V"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips with a caption each."""
    for seed in (0, 1):
        write_clip(tmp_path / f"clip{seed}.mkv", seed=seed)
    return tmp_path


def test_latents_are_those_of_the_reference(models: Models, folder: Path, tiny_pipelines: dict[str, Path]) -> None:
    """A model trained on other latents than diffusers' learns another picture."""
    reference = reference_vae(tiny_pipelines["5b-I2V"])
    built, _ = models.build(folder)
    pictures = world.render(SCENE, np.random.default_rng(0), 9)
    video = torch.from_numpy(pictures).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        theirs = reference.encode(video).latent_dist
    ours = built.load(0)
    assert built.samples[0].name == "clip0.mkv" and built.samples[0].latent_shape == (16, 3, 8, 8)
    check_parity("a clip's latents in a training dataset", ours["latents"], theirs.mean[0], 3e-6)
    std = ours.get("std")
    assert std is not None and std.shape == ours["latents"].shape and ours.get("images") is None
    check_parity("their standard deviation", std, theirs.std[0], 3e-6)
    ours["latents"].clone().requires_grad_().sum().backward()  # not what inference mode gives


def test_texts_are_those_of_the_text_encoder(models: Models, folder: Path) -> None:
    """Every caption with all 226 tokens, and the empty one that a dropped caption becomes."""
    built, _ = models.build(folder)
    for text, ours in (("A red circle, number 1.", built.load(1)["text"]), ("", built.empty_text[0])):
        theirs = models.clip.encode_from_tokens_scheduled(models.clip.tokenize(text))[0][0][0]
        assert ours.shape[0] == 226 and torch.equal(ours, theirs)


def test_first_frames_for_image_to_video(models: Models, tiny_pipelines: dict[str, Path]) -> None:
    """The official recipe: pixel noise of exp(N(-3, 0.5)) before the VAE, then a sample of its posterior."""
    reference = reference_vae(tiny_pipelines["5b-I2V"])
    frames = torch.from_numpy(world.render(SCENE, np.random.default_rng(0), 9)).float() / 255
    spec = DatasetSpec(width=64, height=64, frames=9, image_to_video=True, image_variants=2)
    ours = dataset.encode_segment(models.vae, frames, spec, seed=5)["images"]
    assert ours.shape == (3, 16, 1, 8, 8)
    generator = torch.Generator().manual_seed(5)
    theirs = []
    with torch.no_grad():
        picture = frames[:1] * 2 - 1  # [1, H, W, 3]
        theirs.append(reference.encode(picture.permute(3, 0, 1, 2)[None]).latent_dist.mode())
        for variant in range(2):
            sigma = torch.exp(-3 + 0.5 * torch.randn([], generator=generator))
            noisy = picture + sigma * torch.randn(picture.shape, generator=generator)
            posterior = reference.encode(noisy.permute(3, 0, 1, 2)[None]).latent_dist
            theirs.append(posterior.sample(torch.Generator().manual_seed(5 + variant + 1)))
    check_parity("first frames in a training dataset", ours, torch.cat(theirs), 2e-6)  # noise and posterior on top


def test_second_build_encodes_nothing(models: Models, folder: Path) -> None:
    """Hours of encoding must not be spent twice, and the data must be the same."""
    first, encoded = models.build(folder)
    assert encoded == {"vae": 2, "clip": 3}
    dataset._read.cache_clear()
    again, encoded = models.build(folder)
    assert encoded == {"vae": 0, "clip": 0} and again.hash == first.hash and again.samples == first.samples
    assert "Encoded now: 0 samples and 0 captions" in again.report[-1]
    assert not any("edited" in sentence for sentence in again.report)


def test_edits_are_noticed(models: Models, folder: Path) -> None:
    """Only what was edited is encoded again, and the report names it; a training of before knows by the hash."""
    first, _ = models.build(folder)
    (folder / "clip0.txt").write_text("A blue circle.")
    captioned, encoded = models.build(folder)
    assert encoded == {"vae": 0, "clip": 1} and captioned.hash != first.hash
    assert any("1 clip edited" in sentence and "clip0.mkv" in sentence for sentence in captioned.report)
    assert captioned.load(0)["text"].ne(first.load(0)["text"]).any()
    caption = (folder / "clip1.txt").read_text()
    write_clip(folder / "clip1.mkv", seed=2)  # 7 would show the same pixels again, in another file
    (folder / "clip1.txt").write_text(caption)
    edited, encoded = models.build(folder)
    assert encoded == {"vae": 1, "clip": 0} and edited.hash != captioned.hash
    assert any("1 clip edited" in sentence and "clip1.mkv" in sentence for sentence in edited.report)


def test_other_weights_and_settings_have_their_own_files(
    models: Models, folder: Path, tiny_pipelines: dict[str, Path]
) -> None:
    """Latents of another VAE, or of other settings, must never be taken for these."""
    first, _ = models.build(folder)
    _, encoded = models.build(folder, DatasetSpec(width=48, height=64, frames=9))
    assert encoded == {"vae": 2, "clip": 0}
    weight = next(models.vae.first_stage_model.parameters())
    kept = weight.data.clone()
    weight.data.mul_(1.5)
    try:
        other, encoded = models.build(folder)
    finally:
        weight.data.copy_(kept)
    assert encoded == {"vae": 2, "clip": 0} and other.hash != first.hash
    assert models.build(folder)[1] == {"vae": 0, "clip": 0}


def too_short(folder: Path) -> None:
    write_clip(folder / "bad.mkv", frames=5)


def no_caption(folder: Path) -> None:
    write_clip(folder / "bad.mkv").with_suffix(".txt").unlink()


def not_a_video(folder: Path) -> None:
    write_clip(folder / "bad.mkv").write_bytes(b"no video" * 100)


def cut_off(folder: Path) -> None:
    path = write_clip(folder / "bad.mkv", frames=17)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])


def empty_file(folder: Path) -> None:
    write_clip(folder / "bad.mkv").write_bytes(b"")


def broken_animation(folder: Path) -> None:
    (folder / "bad.gif").write_bytes(b"GIF89a" + bytes(50))
    (folder / "bad.txt").write_text("A caption.")


def caption_is_no_text(folder: Path) -> None:
    write_clip(folder / "bad.mkv").with_suffix(".txt").write_bytes(b"\xff\xfe\x00caption")


def folder_of_a_broken_picture(folder: Path) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "1.png").write_bytes(b"no picture")
    (folder / "bad.txt").write_text("A caption.")


BAD = [
    (too_short, "too few for 9"),
    (no_caption, "no caption"),
    (not_a_video, "cannot be read"),
    (cut_off, "too few|cannot be read"),
    (empty_file, "cannot be read"),
    (broken_animation, "cannot be read"),
    (caption_is_no_text, "UTF-8"),
    (folder_of_a_broken_picture, "cannot be read"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_clips_are_left_out_and_named(
    models: Models, folder: Path, spoil: Callable[[Path], None], words: str
) -> None:
    """One bad clip among many must not stop a night's work, nor vanish without a word."""
    spoil(folder)
    said = []
    built, _ = models.build(folder, report=said.append)
    assert [sample.name for sample in built.samples] == ["clip0.mkv", "clip1.mkv"]
    assert tuple(said) == built.report
    (reason,) = [sentence for sentence in said if sentence.startswith("Left out: bad")]
    assert any(word in reason for word in words.split("|")), reason
    assert any("2 samples" in sentence and "1 clip left out" in sentence for sentence in said)
    for path in folder.glob("clip*"):
        path.unlink()
    with pytest.raises(UserError, match="None of the clips in .*1 found.*bad"):
        models.build(folder)


def test_clip_damaged_in_the_middle_is_left_out(models: Models, folder: Path) -> None:
    """A clip whose damage shows only while it is decoded is left out as well."""
    path = folder / "bad.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    write_video(path, noise, fps=world.FPS, prepare=lambda stream: setattr(stream, "gop_size", 1))
    data = bytearray(path.read_bytes())
    quarter = len(data) // 4
    data[quarter : 2 * quarter] = bytes(quarter)
    path.write_bytes(data)
    path.with_suffix(".txt").write_text("A caption.")
    built, _ = models.build(folder)
    assert [sample.name for sample in built.samples] == ["clip0.mkv", "clip1.mkv"]
    assert any(sentence.startswith("Left out: bad.mp4") for sentence in built.report)


def test_mixed_sizes_stand_together(models: Models, folder: Path) -> None:
    """A batch is of one shape: what has the same stands side by side, whatever the names."""
    write_clip(folder / "clip00.mkv", frames=17, width=96, seed=3)
    write_clip(folder / "clip2.mkv", frames=17, seed=4)
    spec = DatasetSpec(width=64, height=64, frames=17, buckets="auto", shorter="bucket")
    built, _ = models.build(folder, spec)
    shapes = [sample.latent_shape for sample in built.samples]
    assert shapes == [(16, 3, 8, 8), (16, 3, 8, 8), (16, 5, 6, 10), (16, 5, 8, 8)]
    assert all(tuple(built.load(i)["latents"].shape) == shape for i, shape in enumerate(shapes))


def test_segments_of_a_long_clip(models: Models, tmp_path: Path) -> None:
    """Each segment is a sample of its own and shows its own part of the clip."""
    write_clip(tmp_path / "long.mkv", frames=25)
    spec = DatasetSpec(width=64, height=64, frames=9, segments=2)
    built, encoded = models.build(tmp_path, spec)
    assert [sample.name for sample in built.samples] == ["long.mkv", "long.mkv (segment 2)"]
    assert encoded == {"vae": 2, "clip": 2}
    assert built.load(0)["latents"].ne(built.load(1)["latents"]).any()


def test_full_disk(models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is said, leaves no half file, and what was kept before is taken again."""
    from cogvideox.model_loaders.files import safetensors_writer as writer

    original, written = writer._write_tensor, []

    def full(file: BinaryIO, *args: Any) -> None:
        written.append(file.write(bytes(10)))
        if len(written) > 3:  # three captions
            raise OSError(errno.ENOSPC, "No space left on device")
        file.seek(-10, 1)
        original(file, *args)

    monkeypatch.setattr(writer, "_write_tensor", full)
    with pytest.raises(UserError, match="No space left on device.*Free some space"):
        models.build(folder)
    store = folder / CACHE
    assert len(list(store.iterdir())) == 3 and all(path.name.startswith("text-") for path in store.iterdir())
    monkeypatch.undo()
    assert models.build(folder)[1] == {"vae": 2, "clip": 0}


def test_broken_file_in_the_cache_is_encoded_again(models: Models, folder: Path) -> None:
    """A file that a crash of the machine has cut short must not stop every later run."""
    built, _ = models.build(folder)
    path = built.samples[0].path
    path.write_bytes(path.read_bytes()[:-100])
    dataset._read.cache_clear()
    with pytest.raises(UserError, match="cannot be read any more"):
        built.load(0)
    again, encoded = models.build(folder)
    assert encoded == {"vae": 1, "clip": 0} and again.load(0)["latents"].shape == (16, 3, 8, 8)


def test_interrupted_build_goes_on(models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel works between clips, and what was encoded by then is not lost."""
    from comfy.model_management import InterruptProcessingException

    def stop(done: int, total: int) -> None:
        assert total == 5  # the empty caption, two more, two clips
        if done == 4:
            monkeypatch.setattr(dataset, "throw_if_interrupted", interrupted)

    def interrupted() -> None:
        raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        models.build(folder, progress=stop)
    monkeypatch.undo()
    assert models.build(folder)[1] == {"vae": 1, "clip": 0}


def test_cache_elsewhere(models: Models, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A dataset on a disk that cannot be written to is encoded into another folder."""
    elsewhere = tmp_path_factory.mktemp("cache") / "new"
    built, _ = models.build(folder, cache_folder=elsewhere)
    assert not (folder / CACHE).exists() and built.samples[0].path.parent == elsewhere
    shutil.rmtree(elsewhere)
    elsewhere.write_text("a file")
    with pytest.raises(UserError, match="cannot be made"):
        models.build(folder, cache_folder=elsewhere)

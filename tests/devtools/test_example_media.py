import pytest

pytest.importorskip("av")

from PIL import Image  # noqa: E402

from cogvideox.devtools import example_media  # noqa: E402
from cogvideox.devtools.run_workflow import Video, inspect_video  # noqa: E402


def test_files_are_what_the_examples_count_on(tmp_path):
    # The examples take 9 frames of the video and a mask of its size; a mask without white changes nothing.
    example_media.write_media(tmp_path)
    size = example_media.WIDTH, example_media.HEIGHT
    assert inspect_video(tmp_path / example_media.VIDEO) == Video(example_media.FRAMES, *size, example_media.FPS)
    with Image.open(tmp_path / example_media.MASK) as mask:
        assert mask.size == size
        assert mask.getextrema() == (0, 255)
    assert {file.name for file in tmp_path.iterdir()} == {
        example_media.PICTURE,
        example_media.VIDEO,
        example_media.MASK,
        example_media.TOY_PICTURE,
        example_media.CLIPS,
    }


def test_clips_to_train_with_have_captions(tmp_path):
    # A clip without its caption would be left out of the training that the template shows.
    example_media.write_media(tmp_path)
    clips = sorted((tmp_path / example_media.CLIPS).glob("*.mp4"))
    assert len(clips) == 16
    for clip in clips:
        assert inspect_video(clip) == Video(17, 64, 64, example_media.FPS)
        assert "pink" in clip.with_suffix(".txt").read_text("utf-8")


def test_a_users_picture_of_that_name_stays(tmp_path):
    (tmp_path / example_media.PICTURE).write_bytes(b"mine")
    example_media.write_media(tmp_path)
    assert (tmp_path / example_media.PICTURE).read_bytes() == b"mine"

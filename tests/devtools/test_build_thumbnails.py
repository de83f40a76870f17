import json

import numpy as np
import pytest
from PIL import Image

from cogvideox.devtools import build_thumbnails as thumbnails
from cogvideox.devtools.errors import DevError
from cogvideox.devtools.example_workflows import EXAMPLES
from cogvideox.devtools.paths import ROOT
from cogvideox.host.toy import CLIPS

FOLDER = ROOT / "example_workflows"


def given(*nodes: dict) -> list:
    return list(thumbnails._inputs({str(number): node for number, node in enumerate(nodes)}))


def example(shows: str) -> dict:
    return {"class_type": "CogVideoXExample", "inputs": {"example": shows}}


def test_what_goes_in_is_what_a_person_gives():
    # A card without the picture of image to video looks like text to video.
    text = {"class_type": "CogVideoXEncodeText", "inputs": {"text": "a star"}}
    empty = {"class_type": "CogVideoXEncodeText", "inputs": {"text": ""}}
    assert given(text, empty, text) == ["a star"]
    assert [picture.size for picture in given(example("picture"), text)] == [(64, 64)]
    assert len(given(example("picture"), example("last picture"))) == 2
    video = given(example("video"))
    assert len(video) == 3 and video[0] != video[1] != video[2]
    *frames, mask = given(example("video"), {"class_type": "Any", "inputs": {"mask": ["0", 1]}})
    assert len(frames) == 2 and mask.convert("L").getextrema() == (0, 255)
    clips = given({"class_type": "CogVideoXTrainingClips", "inputs": {"folder": CLIPS}})
    assert len(clips) == 3 and clips[0].size == (64, 64)


def test_edges_stand_for_the_video_that_they_are_of():
    edges = np.asarray(given(example("video"), {"class_type": "Canny", "inputs": {}})[0])
    assert set(np.unique(edges)) == {0, 255} and 0.01 < (edges > 0).mean() < 0.2


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_card_shows_all_of_both_rows(count):
    red, green = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "lime")
    card = np.asarray(thumbnails.card([green], [red] * count)).astype(int)
    assert card.shape == (512, 512, 3)
    top, bottom = card[:256], card[256:]
    assert (top[..., 1] - top[..., 0] > 200).sum() == thumbnails._tile_px(3) ** 2
    assert (bottom[..., 0] - bottom[..., 1] > 200).sum() == count * thumbnails._tile_px(max(3, count)) ** 2


def test_a_prompt_is_written_out():
    blank, written = (np.asarray(thumbnails.card(texts, [])) for texts in ([], ["A big yellow star moves."]))
    assert (written != blank).any(axis=-1)[:256].mean() > 0.005


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.needs], ids=lambda e: e.name)
def test_a_card_says_what_has_to_be_downloaded(example):
    """Letters that run over the edge, or none: the picture would not say what a click on it costs."""
    blank, card = (np.asarray(thumbnails.download_card(text)).astype(int) for text in ("\n", example.needs))
    written = np.argwhere(np.abs(card - blank).max(axis=-1) > 60)
    assert len(written) > 2000
    assert written.min() >= 16 and written.max() < 512 - 16
    assert "GB" in example.needs and "fps" in example.needs


def test_every_template_has_one_of_this_kind():
    # The picture of last resort, or one of a screenshot, has another size.
    for file in FOLDER.glob("*.json"):
        assert json.loads(file.read_text("utf-8"))["nodes"]
        assert Image.open(file.with_suffix(".jpg")).size == (512, 512)


def test_an_unknown_template_is_named():
    with pytest.raises(DevError, match="There is no template nothing; there are: text_to_video"):
        thumbnails.main(["nothing"])

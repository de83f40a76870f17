"""The picture of frames for the README."""

import numpy as np

from cogvideox.devtools import contact_sheet
from cogvideox.tests.clip_files import write_video


def test_frames_from_first_to_last_a_row_a_video(tmp_path):
    clips = np.zeros((2, 11, 16, 32, 3), np.uint8)
    clips[0] = 20 * np.arange(11)[:, None, None, None]  # frame 10 is the lightest
    clips[1] = 255
    videos = [
        write_video(tmp_path / f"{i}.mkv", clip, "ffv1", "bgr0", container="matroska") for i, clip in enumerate(clips)
    ]
    sheet = np.asarray(contact_sheet.contact_sheet(videos))
    zoom, gap = contact_sheet.ZOOM, contact_sheet.GAP
    assert sheet.shape == (2 * 16 * zoom + gap, 6 * 32 * zoom + 5 * gap, 3)
    first_row = sheet[0, :: 32 * zoom + gap, 0]
    assert first_row.tolist() == [0, 40, 80, 120, 160, 200]
    assert (sheet[-1] == 255).all()


def test_frames_of_a_real_video_fit_on_a_page(tmp_path):
    """Six frames of 720 x 480, twice as large: a picture 8660 pixels wide for one row of a document."""
    clip = np.full((6, 480, 720, 3), 128, np.uint8)
    sheet = contact_sheet.contact_sheet([write_video(tmp_path / "x.mkv", clip, "ffv1", "bgr0", container="matroska")])
    assert sheet.size == (6 * 320 + 5 * contact_sheet.GAP, 213)

"""Which formats of pictures and videos are opened, whatever a file is called. No import of torch.

Pillow and FFmpeg go by a file's content and not by its suffix. Of the other formats some run a program (EPS), open
further files (playlists), or take nearly any bytes for a picture (TGA, XBM).
"""

# As Pillow names them. A dataset has pictures of the first kind and animations of the second; what is uploaded for a
# single picture may be a TIFF as well.
FRAME_FORMATS = ("PNG", "JPEG", "BMP")
ANIMATION_FORMATS = ("GIF", "WEBP")
PICTURE_FORMATS = (*FRAME_FORMATS, *ANIMATION_FORMATS, "TIFF")
# What people call a format -> FFmpeg's names of what reads it.
_DEMUXERS = {
    "MP4": "mp4,m4a,3gp,3g2,mj2",
    "MOV": "mov",
    "MKV": "matroska",
    "WebM": "webm",
    "AVI": "avi",
    "GIF": "gif",
    "FLV": "flv",
    "Ogg": "ogg",
    "WMV": "asf",
    "MPEG-TS": "mpegts",
    "MPEG": "mpeg",
}
VIDEO_FORMATS = tuple(_DEMUXERS)
VIDEO_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(_DEMUXERS.values())}  # for av.open


def listed(formats: tuple[str, ...]) -> str:
    """Names of formats for a sentence."""
    return f"{', '.join(formats[:-1])} or {formats[-1]}"

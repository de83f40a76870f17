"""Finished English messages, matched with the templates that they were made from."""

import random
import re
import time

import pytest

from cogvideox.errors import UserError, quoted
from cogvideox.host.folders import DATASETS
from cogvideox.locales.translations import Catalogue, load_catalogue, make_catalogue, translate, translate_with
from cogvideox.nodes.advice import ADVICE

CATALOGUE = make_catalogue(
    {
        "{name} has {count} frames. Use {nearest}.": "{name} 有 {count} 帧。请使用 {nearest}。",
        "{below} or {above}": "{below} 或 {above}",
        "{path} {what} ({size} bytes).": "{path} {what}（{size} 字节）。",
        "is a web page": "是网页",
        "has gaps": "有空隙",
        "{found} Download it again.": "{found} 请重新下载。",
        "The file holds {quoted_name} twice.": "文件中有两份 {quoted_name}。",
        "There is no {name}. {step}": "没有 {name}。{step}",
        '{path} has no "text".': '{path} 没有 "text"。',
        "Left out: {reason}": "未采用：{reason}",
        "{folder} lacks {shown}{more}.": "{folder} 缺少 {shown}{more}。",
        " and {count} more": " 以及另外 {count} 个",
        "The weights do not fit: {problems}.": "权重不符：{problems}。",
        "missing {names}": "缺少 {names}",
        "It is {what}": None,
        " It went on.": " 已继续。",
        "All steps were trained.": "全部步数已训练。",
        'a line is {{"text": "{text}"}}': '一行为 {{"text": "{text}"}}',
    }
)


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("The mask has 5 frames. Use 1 or 9.", "The mask 有 5 帧。请使用 1 或 9。"),
        # a path that contains the border between two placeholders
        ("/my models/a b.pt is a web page (3 bytes).", "/my models/a b.pt 是网页（3 字节）。"),
        (
            "/my models/a b.pt does what (3 bytes).",
            "/my does what（3 字节）。".replace("/my does", "/my models/a b.pt does"),
        ),
        # a sentence in a sentence, and sentences one after the other
        ("x.pt has gaps (2 bytes). Download it again.", "x.pt 有空隙（2 字节）。 请重新下载。"),
        ("All steps were trained. It went on.", "全部步数已训练。已继续。"),
        ("All steps were trained. Nobody knows this. It went on.", "全部步数已训练。Nobody knows this. 已继续。"),
        ("All steps were trained.\nAll steps were trained.", "全部步数已训练。\n全部步数已训练。"),
        # what a message is about
        ("clip.mp4: All steps were trained.", "clip.mp4：全部步数已训练。"),
        # a message that ends in another one, and a table
        ("The file holds quotes twice. x has 5 frames. Use 1.", "文件中有两份 quotes。x 有 5 帧。请使用 1。"),
        ("| is a web page | has gaps | 3 |", "| 是网页 | 有空隙 | 3 |"),
        # lists
        ("The weights do not fit: missing a, b; is a web page; other c.", "权重不符：缺少 a, b；是网页；other c。"),
        ("vae lacks a, b and c.", "vae 缺少 a, b and c。"),
        ("vae lacks a, b and 3 more.", "vae 缺少 a, b 以及另外 3 个。"),
        ('a line is {"text": "a {cat}"}', '一行为 {"text": "a {cat}"}'),
        # left in English: unknown, and what the catalogue says
        ("No such message.", "No such message."),
        ("It is so", "It is so"),
        ("", ""),
    ],
)
def test_messages_are_found(english: str, chinese: str) -> None:
    """Half a message in another language, or none, where a file has a space in its name."""
    assert translate_with(CATALOGUE, english) == chinese


def test_a_users_own_text_stays() -> None:
    """A prompt, or a name in a file, that happens to be one of our phrases is not ours to translate."""
    assert translate_with(CATALOGUE, "The file holds is a web page twice.") == "文件中有两份 is a web page。"
    assert translate_with(CATALOGUE, "Left out: a cat or a dog") == "未采用：a cat or a dog"


NAMES = (
    *(
        "All steps were trained.",
        "All steps were trained. It went on.",
        "x is a web page (3 bytes).",
        "a. b",
        "has gaps",
    ),
    *(
        "It's a: All steps were trained.",
        """it's "x". All steps were trained.""",
        "missing a, missing b and has gaps",
        "\ue000",
    ),
    *("'. It went on.", "\\", "text", "There is no 'x'. It went on.", "没有 x。", "| has gaps | is a web page", "{0}"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_quotation_marks_stays(name: str) -> None:
    """A file may be called as a sentence of ours, or as several: a user looks for it by the name that it has."""
    english = f"There is no {name!r}. All steps were trained."
    assert translate_with(CATALOGUE, english) == f"没有 {name!r}。全部步数已训练。"
    both = translate_with(CATALOGUE, f"vae lacks {name!r}, {name!r} and 3 more.\n{english}")
    assert both == f"vae 缺少 {name!r}, {name!r} 以及另外 3 个。\n没有 {name!r}。全部步数已训练。"


@pytest.mark.parametrize("name", ["has gaps", "missing a.pt", "/has gaps", "a, has gaps"])
def test_a_path_stays(name: str) -> None:
    """Without quotation marks too, where the whole value is a path."""
    assert translate_with(CATALOGUE, f'{name} has no "text".') == f'{name} 没有 "text"。'


@pytest.mark.parametrize("name", ["1 or 2.mp4", "cat and dog.safetensors", "with sound.mp4"])
def test_a_files_name_without_quotation_marks_stays(name: str) -> None:
    """A clip called "1 or 2.mp4" had another name on a Chinese page, where a short phrase of ours was found in it."""
    for english in (
        f"{name}: it has no caption. Write one into {name}.txt next to it.",
        f"{name}: it cannot be read (damaged).",
        f"{name} does not belong to a plain LoRA, the only kind that diffusers' layout supports.",
        f"{name} and 3 more",
    ):
        shown = translate_with(load_catalogue("zh"), english)
        assert name in shown, shown
    assert "没有描述" in translate_with(
        load_catalogue("zh"), f"{name}: it has no caption. Write one into a.txt next to it."
    )


def test_a_prompts_words_stay() -> None:
    """Messages quote a prompt in curly marks, and a sentence of ours may stand in it."""
    words = 'a cat with a sign that says "open". All steps were trained. It went on.'
    shown = translate_with(CATALOGUE, f"There is no “{words}”. All steps were trained.")
    assert shown == f"没有 “{words}”。全部步数已训练。"


@pytest.mark.parametrize(
    "text",
    [
        "Could not read the clip holiday.mp4 at second 3",
        "Error opening caption /data/a.txt (permission denied)",
        "CUDA error: out of memory in sampler kernel foo",
    ],
)
def test_nothing_is_lost_of_what_others_write(text: str) -> None:
    """An error of a library came out as "Could not read the" and half a sentence of ours."""
    shown = translate_with(load_catalogue("zh"), text)
    assert all(word in shown for word in re.findall(r"[\w.]{5,}", text)), shown


def test_braces_in_a_value_are_text() -> None:
    """A file called {0.__class__} is not a template."""
    shown = translate_with(CATALOGUE, "{name.__class__} has {0} frames. Use {nearest}.")
    assert shown == "{name.__class__} 有 {0} 帧。请使用 {nearest}。"


def hostile_texts() -> list[str]:
    """Texts of 8,000 letters made of what the real catalogue looks for, and of what makes a search slow."""
    draw = random.Random(0)
    pieces = [piece for one in load_catalogue("zh").others for piece in one.constants if piece]
    mixed = "".join(draw.choice(pieces) for _ in range(2000))
    return [
        "a" * 8000,
        ". " * 4000,
        " and " * 1600,
        ": " * 4000,
        "; ".join(draw.choice(pieces) for _ in range(500)),
        mixed[:8000],
        " or ".join("a b" for _ in range(1300)),
        "The weights in " + " do not fit the model: " * 340,
        "\n" * 8000,
        "'a\\" * 2600,
        " '" * 4000,
        "".join(map(chr, range(0xE000, 0xF900))) + " 'a'" * 400,
        "\n".join(draw.choice(pieces) + "x" for _ in range(400)),
    ]


@pytest.mark.parametrize("number", range(len(hostile_texts())))
def test_a_hostile_text_takes_no_time(number: int) -> None:
    """A name in a stranger's file, of any length, is matched with hundreds of templates while the server waits."""
    text = hostile_texts()[number][:8000]
    load_catalogue("zh")
    start = time.process_time()
    translate(text, "zh")
    assert time.process_time() - start < 1  # the worst of them takes a tenth of a second
    assert translate_with(CATALOGUE, text + "a" * 8000) == text + "a" * 8000  # longer than any message


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "5", "null", '"a"', '["Saved {names}."]', '{"Saved {names}.": 5}', '{"Saved {names}.": ["b"]}'),
        *('{"Saved {names}.": {"a": "b"}}', '{"Saved {": "b"}', '{"Saved {names}.": "{"}', "\ud800", "[" * 100_000),
    ],
    ids=lambda text: text[:20].encode("ascii", "replace").decode(),
)
def test_a_broken_catalogue_leaves_messages_english(text: str, tmp_path, monkeypatch) -> None:
    """An error about an error would hide the first one."""
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "messages.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    monkeypatch.setattr("cogvideox.locales.translations._CATALOGUES", tmp_path)
    load_catalogue.cache_clear()
    try:
        assert translate("Saved a.", "zh") == "Saved a."
        assert translate("Saved a.", "no such language") == "Saved a."
    finally:
        load_catalogue.cache_clear()


def errors() -> list[tuple[str, str | None]]:
    """(an English message as the pack makes it, its translation; None where any will do)."""
    return [
        (
            "/models/text encoders/t5.safetensors is a web page, not weights (120 bytes). Download it again.",
            "/models/text encoders/t5.safetensors 是网页，不是权重（120 字节）。请重新下载。",
        ),
        (
            "The VAE in /a b/vae looks like a Wan VAE, not a CogVideoX VAE. Choose the checkpoint's vae.",
            "The VAE in /a b/vae 看起来是Wan VAE，不是CogVideoX VAE。请选择模型的 vae。",
        ),
        ("frames 50 is not 4k + 1 (8k + 1 as the models were trained): use 49 or 57, or else 53", None),
        ("width 100 is not divisible by 16: use 96 or 112", "width 100 不能被 16 整除：请使用 96 或 112"),
        (
            "The weights in x do not fit the model: missing a, b; of another shape c. Download the checkpoint again, "
            "or put its own config.json into the folder of its weights.",
            "x 中的权重与模型不符：缺少 a, b；形状不同 c。请重新下载模型，"
            "或把它自己的 config.json 放到权重所在的文件夹。",
        ),
        (
            f"There is no folder {quoted('a b')} in /input. Put the folder with the clips and their captions there "
            f"(clip.mp4 and clip.txt), or name the folder that it is in: under {DATASETS} in extra_model_paths.yaml, "
            "or in the environment variable COGVIDEOX_DATASETS.",
            None,
        ),
        (
            "clip 1.mp4: it has 5 frames, too few for 49 at 8 frames a second. Take a longer clip, ask for fewer frames"
            ', or set shorter to "bucket".',
            None,
        ),
        (
            "480 of 490 keys matched: 240 layers, attention and feed-forward, rank 8 to 16, scale 1 "
            "(alpha of the header).\nNot in this model: a, b, c and 3 more.\n"
            "Skipped 4 for a text encoder: a, b, c and 1 more.",
            "490 个键中有 480 个匹配：240 层，attention and feed-forward，秩 8 到 16，缩放 1（文件头中的 alpha）。"
            "\n此模型中没有：a, b, c 以及另外 3 个。\n跳过 4 个（用于文本编码器）：a, b, c 以及另外 1 个。",
        ),
        # parts that are joined
        (
            "12 of 12 keys matched: 6 layers, LoRA and difference, rank 4, scale 1 "
            "(alpha of the tensors and alpha of the header).",
            "12 个键中有 12 个匹配：6 层，LoRA 和 差值，秩 4，缩放 1（张量中的 alpha，并且文件头中的 alpha）。",
        ),
        ("9 of 9 keys matched: 1 layers, difference.", "9 个键中有 9 个匹配：1 层，差值。"),
        (
            "/a holds a CogVideoX transformer (2 times): a.safetensors, b.safetensors. Choose one of the files, or "
            "leave only one in the folder.",
            "/a 中有 2 份CogVideoX Transformer：a.safetensors, b.safetensors。"
            "请选择其中一个文件，或只在文件夹中保留一个。",
        ),
        (
            "The video to follow is 96 x 64 pixels, 4 latent frames, batch 2; this run's latent is 96 x 96 pixels, 4 "
            "latent frames, batch 3. Set the same width and height, batch size, or invert a video that has this run's.",
            "要跟随的视频为 96 x 64 像素、4 个 Latent 帧、批量 2；"
            "此次运行的 Latent 为 96 x 96 像素、4 个 Latent 帧、批量 3。"
            "请使用相同的宽度和高度，批量大小，或反演与此次运行相同的视频。",
        ),
        (
            "Encoded now: 1 sample and 3 captions (the empty one counts); from the cache: 2 and 0.",
            "现编码：1 个样本和3 个描述（含空描述）；来自缓存：2 和 0。",
        ),
    ]


@pytest.mark.parametrize("number", range(len(errors())))
def test_real_messages(number: int) -> None:
    """The catalogue's own sentences, with what they quote."""
    english, chinese = errors()[number]
    shown = translate(english, "zh")
    assert shown == chinese if chinese else "：" in shown and "请" in shown


def test_every_next_step_is_translated() -> None:
    """It is half of the message."""
    for step in ADVICE.values():
        assert translate(step, "zh") != step and translate(step, "zh").endswith("。")


def test_an_error_has_its_parts() -> None:
    """The two are translated apart."""
    step = ADVICE["make a latent"]
    assert UserError("Found this.", advice="make a latent").parts() == ("Found this.", step)
    assert UserError("Found this.").parts() == ("Found this.", "")


def test_catalogue_prefers_the_more_specific() -> None:
    """ "{path}: {error}" would take every message for its own."""
    entries = {"{a} is {b}.": "一般 {a} {b}", "{a} is not a model: {b}.": "具体 {a} {b}"}
    for order in (entries, dict(reversed(entries.items()))):
        catalogue: Catalogue = make_catalogue(order)
        assert translate_with(catalogue, "x is not a model: it is y.") == "具体 x it is y"


_SIZES = (
    "width 65 is not divisible by 16: use 64 or 80; frames 50 is not 4k + 1 (8k + 1 as the models were trained): use "
)


@pytest.mark.parametrize(
    ("english", "end"),
    [
        (f"{_SIZES}49 or 57, or else 53.", "请使用 49 或 57，也可用 53。"),
        ("height 481 is not divisible by 16: use 480 or 496.", "请使用 480 或 496。"),
        (
            "This is CogVideoX-nano, the toy that comes with the pack: it does not know “a”, “b” and 5 more words. x",
            None,
        ),
    ],
)
def test_punctuation_between_parts_is_chinese(english: str, end: str | None) -> None:
    """The full stop behind a list of problems, and the commas between words, are of no template: they stayed narrow."""
    told = translate(english, "zh")
    assert told.endswith(end) if end else "不认识“a”、“b”以及另外 5 个词。" in told


@pytest.mark.parametrize("text", ["no such cat.", "no.such.file", "It is found in 3 places."])
def test_a_full_stop_of_another_text_stays(text: str) -> None:
    assert translate(text, "zh") == text

"""What the official checkpoints take on cards of 6 to 80 GB, counted on shapes: no weights, no card, a few seconds.

--write puts the tables into docs/models.md and README.md, between the marks that they have there.
"""

import re
from pathlib import Path
from typing import Any

from cogvideox.benchmarks.common import Table, arguments, report, use_comfyui
from cogvideox.devtools.paths import ROOT
from cogvideox.model_loaders.downloads.repositories import find_repository

GIB = 1 << 30
CARDS_GB = (6, 8, 12, 16, 24, 48, 80)
MODELS = ("CogVideoX-2b", "CogVideoX-5b", "CogVideoX-5b-I2V", "CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V")
# A row of README's table -> the checkpoints that it stands for; the most of them counts.
ROWS = {"2b": MODELS[:1], "5b, 5b-I2V": MODELS[1:3], "1.5-5B, 1.5-5B-I2V": MODELS[3:]}
MARK, END = "<!-- forecast -->", "<!-- end -->"
_TEMPLATES = {
    "CogVideoX-2b": "22 Text to video with CogVideoX-5b",
    "CogVideoX-5b": "22 Text to video with CogVideoX-5b",
    "CogVideoX-5b-I2V": "23 Image to video with CogVideoX-5b-I2V",
    "CogVideoX1.5-5B": "21 Text to video with CogVideoX1.5-5B",
    "CogVideoX1.5-5B-I2V": "23 Image to video with CogVideoX-5b-I2V",
}


def main() -> None:
    options = arguments(__doc__, write={"action": "store_true", "help": "write docs/models.md and README.md as well"})
    use_comfyui(cpu=True)
    found = forecasts()
    report("forecast", [cards_table(found), needs_table(found)], options.save)
    if options.write:
        for document, text in documents(found).items():
            path = ROOT / document
            path.write_text(replace_block(path, text), encoding="utf-8")
            print(f"Written to {document}")


def forecasts() -> dict[tuple[str, int], Any]:
    """(checkpoint, GB of the card) -> model_loaders.forecast.Forecast, at the size that the checkpoint is made for."""
    from cogvideox.host.memory_rules import card_of
    from cogvideox.model_loaders.forecast import VideoSize, forecast_run, official_text_encoder, official_vae
    from cogvideox.sockets.recommended import RECOMMENDED
    from cogvideox.tests.hollow_files import hollow_model

    encoder, vae, found = official_text_encoder(), official_vae(card_of(CARDS_GB[0])), {}
    for name in MODELS:
        model, settings = hollow_model(name), RECOMMENDED[name]
        size = VideoSize(settings.width, settings.height, settings.frames)
        for gigabytes in CARDS_GB:
            found[name, gigabytes] = forecast_run(model, size, card_of(gigabytes), encoder, vae)
    return found


def cards_table(found: dict[tuple[str, int], Any]) -> Table:
    """A row for each checkpoint and for the cards with the same figures, with the precision that is advised."""
    rows: list[list[str]] = []
    cards: list[list[int]] = []
    for (name, gigabytes), run in found.items():
        part, decode = advised(run), run.decode
        row = [
            run.weight_dtype,
            *(_gib(size) for size in (run.denoiser.weights.streamed_bytes, part.weights.streamed_bytes)),
            *(_gib(size) for size in (part.peak_bytes, run.text_encoder.peak_bytes, decode.peak_bytes)),
            decode.mode,
        ]
        if rows and rows[-1] == [name, *row]:
            cards[-1].append(gigabytes)
        else:
            rows.append([name, *row])
            cards.append([gigabytes])
    rows = [[name, _cards(held), *row] for (name, *row), held in zip(rows, cards)]
    notes = ("In GiB, counted and not measured.",)
    header = (
        *("checkpoint", "card", "weight_dtype", "streamed with default", "streamed"),
        *("peak: denoiser", "text encoder", "decode", "its mode"),
    )
    return Table("Cards", notes, header, rows)


def advised(run: Any) -> Any:
    """The denoiser in the precision that the forecast advises."""
    return run.denoiser if run.weight_dtype == "default" else run.eight_bits[1]


def _cards(gigabytes: list[int]) -> str:
    return f"{gigabytes[0]} GB" if len(gigabytes) == 1 else f"{gigabytes[0]} to {gigabytes[-1]} GB"


def needs_table(found: dict[tuple[str, int], Any]) -> Table:
    """Main memory of each checkpoint, and disk: of the published files."""
    rows = []
    for name in MODELS:
        runs = [found[name, gigabytes] for gigabytes in CARDS_GB]
        least, most = (choose(run.host_bytes for run in runs) for choose in (min, max))
        template = _TEMPLATES[name]
        rows.append([name, f"{_gib(least)} to {_gib(most)} GiB", f"{find_repository(name).gigabytes:.1f} GB", template])
    notes = ("Counted, not measured. The most is that of the smallest card, whose VAE keeps frames in main memory.",)
    return Table("Main memory and disk", notes, ("checkpoint", "main memory", "disk", "template"), rows)


def readme_table(found: dict[tuple[str, int], Any]) -> list[str]:
    """README's lines: the precision to choose, what is streamed with it, and the number of the template. Cards with the
    same are one column."""
    columns: list[list[str]] = []
    cards: list[list[int]] = []
    for gigabytes in CARDS_GB:
        column = []
        for names in ROWS.values():
            runs = [found[name, gigabytes] for name in names]
            streamed = max(advised(run).weights.streamed_bytes for run in runs)
            (chosen,) = {run.weight_dtype for run in runs}
            column.append(f"{chosen} +{_gib(streamed)}" if streamed else chosen)
        if columns and columns[-1] == column:
            cards[-1].append(gigabytes)
        else:
            columns.append(column)
            cards.append([gigabytes])
    header = f"| card | {' | '.join(map(_cards, cards))} | template |"
    rows = [
        f"| {row} | {' | '.join(cells)} | {', '.join(dict.fromkeys(_TEMPLATES[name][:2] for name in names))} |"
        for (row, names), cells in zip(ROWS.items(), zip(*columns))
    ]
    return [header, "|---" * (2 + len(cards)) + "|", *rows]


def documents(found: dict[tuple[str, int], Any]) -> dict[str, str]:
    """Document -> what stands in it between the marks."""
    tables = [cards_table(found), needs_table(found)]
    rendered = "\n\n".join("\n".join(table.markdown().splitlines()[3 + len(table.notes) :]) for table in tables)
    return {"docs/models.md": rendered, "README.md": "\n".join(readme_table(found))}


def replace_block(path: Path, text: str) -> str:
    """The document with `text` between its marks."""
    document = path.read_text(encoding="utf-8")
    pattern = f"{re.escape(MARK)}\n.*?{re.escape(END)}"
    return re.sub(pattern, lambda _: f"{MARK}\n\n{text}\n\n{END}", document, flags=re.S)


def block(document: str) -> str:
    """What stands between the marks of a document's text."""
    return document.partition(MARK)[2].partition(END)[0].strip("\n")


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


if __name__ == "__main__":
    main()

"""What a template needs that is not there yet, as its card and its note say it."""

from collections.abc import Mapping, Sequence

from cogvideox.model_loaders.downloads.repositories import Repository, SingleFile, find_file, find_repository

from .table import Column

_COUNTS = ("no", "one", "two", "three", "four", "five", "six")


def names(*files: SingleFile) -> tuple[Mapping[str, str], ...]:
    """The entries of `properties.models` of a node that loads one of them, the first if nothing else is chosen."""
    return tuple(file.as_property() for file in files)


def words(published: Sequence[SingleFile | Repository], folders: int = 0) -> tuple[str, str]:
    """("three files and a folder", "21 GB"): how many there are, and how large they are together.

    folders: of no known size, beside those that are published.
    """
    files = sum(isinstance(entry, SingleFile) for entry in published)
    folders += len(published) - files
    counts = [
        f"{_COUNTS[files]} file{'s' if files > 1 else ''}" if files else "",
        f"{'a' if files else _COUNTS[folders]} folder" if folders else "",
    ]
    # A sum of tenths is rounded to tenths first: in binary 21.5 may be a little more or less.
    return " and ".join(filter(None, counts)), f"{round(sum(entry.gigabytes for entry in published), 1):.0f} GB"


def needs(model: str, columns: Sequence[Column], made: str) -> str:
    """The lines of a template's card. made: what it makes.

    Counted are each node's first file, the checkpoint of CogVideoX Download, and control nets.
    """
    published: list[SingleFile | Repository] = []
    nodes = [spec for column in columns for spec in column.nodes]
    for spec in nodes:
        if spec.models:
            file = find_file(spec.models[0]["name"])
            assert file is not None, spec.models
            published.append(file)
        elif spec.type == "CogVideoXDownload":
            published.append(find_repository(str(spec.widgets["checkpoint"])))
    count, gigabytes = words(published, sum(spec.type == "CogVideoXLoadControlNet" for spec in nodes))
    return f"{model}\n{gigabytes}, {count}\n{made}"

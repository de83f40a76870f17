"""Encode beforehand, in several processes, what CogVideoX-nano's transformers learn from:
python -m cogvideox.nano.encode WORK PROCESSES TASK ..., each TASK "text" or one of conditions.CONDITIONS.

Without this nano.train encodes in one process what a stage asks for.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from cogvideox.host.standalone import comfyui_from_environment, use_comfyui

from . import buckets
from .conditions import CONDITIONS
from .stage import SEED


def _begin() -> None:
    torch.set_num_threads(1)
    use_comfyui(cpu=not torch.cuda.is_available())


def _encode(bucket: buckets.Bucket, work: Path, task: str) -> None:
    buckets.load_or_encode_part(bucket, work, SEED, task)


def encode(work: Path, processes: int, tasks: list[str]) -> None:
    """Write the files of all buckets for `tasks`, task by task, the longest ones first.

    Raises ValueError for a task that there is not, and what a process has raised.
    """
    known = ("text", *CONDITIONS)
    if unknown := set(tasks) - set(known):
        raise ValueError(f"There is no task {', '.join(sorted(unknown))}. The tasks are {', '.join(known)}.")
    comfyui_from_environment()
    by_pixels = sorted(buckets.BUCKETS, key=lambda b: -b.clips * b.frames * b.width * b.height)
    jobs = [(bucket, work, task) for task in tasks for bucket in by_pixels]
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin) as pool:
        for encoding in [pool.submit(_encode, *job) for job in jobs]:
            encoding.result()


if __name__ == "__main__":
    encode(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

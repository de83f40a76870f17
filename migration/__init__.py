"""From ComfyUI-CogVideoXWrapper to this pack: its nodes, what stands for them here, and whole workflows rewritten.

Standard library only: `python3 dev.py migrate` runs without ComfyUI and without the packages that it needs.

The facts about the wrapper (its inputs in their order, and what it does with a number) are those of
github.com/kijai/ComfyUI-CogVideoXWrapper, commit fdb8abd (2025-08-07): nodes.py, model_loading.py and
pipeline_cogvideox.py.
"""

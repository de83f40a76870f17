"""Build example_workflows/*.json with ComfyUI's own frontend: python -m devtools.build_example_workflow [NAME ...].

Each workflow is a table: columns of nodes from left to right, a titled group each. The frontend itself makes the
nodes, links and sizes and writes the file, so it is what File > Save would write. Needs COMFYUI_PATH, a Chromium and
the packages of requirements-dev.txt (all there after `python3 dev.py test`).
"""

import json
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .browser import find_browser
from .comfyui import prepare_base
from .embedded_checkpoint import folder_name, write_pipeline
from .errors import DevError
from .frontend import Frontend, launched_browser, open_frontend, settings
from .paths import EXAMPLE_WORKFLOW, PACK_NAME, ROOT
from .server import running_server

FOLDER = EXAMPLE_WORKFLOW.parent


@dataclass(frozen=True)
class Node:
    """One node. name: what `links` call it. widgets: values by widget name, the others keep their default.

    links: input name -> "node name.output name". height: at least so many px.
    """

    name: str
    type: str
    widgets: dict[str, object] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    title: str = ""
    height: int = 0
    color: str = ""


@dataclass(frozen=True)
class Column:
    """Nodes below one another in a group. width, px: of each node."""

    title: str
    width: int
    nodes: tuple[Node, ...]
    color: str = "#3f789e"


@dataclass(frozen=True)
class Example:
    """A workflow: the file's name, the embedded checkpoint it is set to, and its columns."""

    name: str
    variant: str
    columns: tuple[Column, ...]


_REAL_CHECKPOINT = """\
### Ready to run
**CogVideoX-tiny-5b** holds random weights: Run makes coloured noise, and shows that everything works.

### For real videos
1. Put the whole folder of a checkpoint (it holds `model_index.json`) into `models/diffusers`.
2. Press **R** and choose it above.
3. Set what its authors recommend:

| | 2b | 5b | 1.5-5B |
|---|---|---|---|
| width | 720 | 720 | 1360 |
| height | 480 | 480 | 768 |
| frames | 49 | 49 | 81 |
| steps | 50 | 50 | 50 |
| sampler | ddim | dpm | dpm |
| dynamic_cfg | off | on | on |
| fps | 8 | 8 | 16 |

The same seed makes the same video as in diffusers.
"""

_PROMPT = (
    "A panda in a small red jacket sits on a wooden stool in a bamboo forest and plays a tiny guitar. Sunlight falls "
    "through the leaves, a few other pandas gather around and listen, and a light wind moves the bamboo. Slow camera "
    "push in, warm colours, sharp detail."
)


def _text_to_video() -> Example:
    model = Column(
        "1  Checkpoint",
        330,
        (
            Node("pipeline", "CogVideoXLoadPipeline", {"folder": folder_name("5b")}),
            Node("note", "MarkdownNote", {"text": _REAL_CHECKPOINT}, title="Your own checkpoint", height=420),
        ),
    )
    prompt = Column(
        "2  Prompt and size",
        360,
        (
            _prompt("positive", "What the video shows", _PROMPT, "#232", 210),
            _prompt("negative", "What to keep away from", "", "#322", 130),
            Node("latent", "CogVideoXEmptyLatent", {"width": 96, "height": 64, "frames": 17, "batch_size": 1}),
        ),
    )
    sample = Column(
        "3  Sample",
        360,
        (
            Node(
                "sample",
                "CogVideoXSample",
                {"seed": 42, "control_after_generate": "fixed", "steps": 20, "sampler": "dpm", "dynamic_cfg": True},
                {
                    "model": "pipeline.MODEL",
                    "positive": "positive.CONDITIONING",
                    "negative": "negative.CONDITIONING",
                    "latent_image": "latent.LATENT",
                },
                height=520,
            ),
        ),
    )
    video = Column(
        "4  Video",
        360,
        (
            Node("decode", "CogVideoXDecode", {}, {"vae": "pipeline.VAE", "samples": "sample.LATENT"}),
            Node("video", "CreateVideo", {"fps": 8}, {"images": "decode.IMAGE"}),
            Node("save", "SaveVideo", {"filename_prefix": "video/CogVideoX"}, {"video": "video.VIDEO"}, height=340),
        ),
    )
    return Example("text_to_video", "5b", (model, prompt, sample, video))


def _prompt(name: str, title: str, text: str, color: str, height: int) -> Node:
    return Node(name, "CogVideoXEncodeText", {"text": text}, {"clip": "pipeline.CLIP"}, title, height, color)


EXAMPLES = (_text_to_video(),)

# In the page: [example, gap in px] -> what app.graph.serialize() gives, as JSON. A wrong name ends it, where the
# frontend would go on.
_BUILD = """
async ([example, gap]) => {
  const need = (found, what) => { if (!found) throw new Error(`there is no ${what}`); return found }
  const nodes = {}, bottom = []
  let left = 0
  for (const column of example.columns) {
    let top = 0
    for (const spec of column.nodes) {
      const node = nodes[spec.name] = need(LiteGraph.createNode(spec.type), `node ${spec.type}`)
      app.graph.add(node)
      if (spec.title) node.title = spec.title
      if (spec.color) { node.color = spec.color; node.bgcolor = spec.color }
      for (const [name, value] of Object.entries(spec.widgets)) {
        const widget = need(node.widgets?.find(w => w.name === name), `widget ${spec.type}.${name}`)
        if (widget.type === 'combo' && !widget.options.values.includes(value))
          throw new Error(`${value} is not in the list of ${spec.type}.${name}`)
        widget.value = value
      }
      node.pos = [left, top]
      node.setSize([column.width, Math.max(spec.height, node.computeSize()[1])])
      top += node.size[1] + LiteGraph.NODE_TITLE_HEIGHT + gap
    }
    bottom.push(top)
    left += column.width + 3 * gap
  }
  for (const column of example.columns)
    for (const spec of column.nodes)
      for (const [input, source] of Object.entries(spec.links)) {
        const [from, output] = source.split('.')
        const slot = need(nodes[from], `node named ${from}`).findOutputSlot(output)
        if (slot < 0) throw new Error(`${from} has no output ${output}`)
        need(nodes[from].connect(slot, nodes[spec.name], input), `way from ${source} to ${spec.name}.${input}`)
      }
  // The last node of each column reaches down to the longest column's end.
  const end = Math.max(...bottom)
  example.columns.forEach((column, i) => {
    const last = nodes[column.nodes.at(-1).name]
    if (column.nodes.at(-1).height) last.setSize([last.size[0], last.size[1] + end - bottom[i]])
    const group = new LiteGraph.LGraphGroup(column.title)
    group.color = column.color
    app.graph.add(group)
    const top = -LiteGraph.NODE_TITLE_HEIGHT - gap - group.titleHeight
    group.pos = [nodes[column.nodes[0].name].pos[0] - gap, top]
    group.size = [column.width + 2 * gap, end - LiteGraph.NODE_TITLE_HEIGHT - top]
  })
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
  return JSON.stringify(app.graph.serialize())
}
"""
_GAP_PX = 20


def build(frontend: Frontend, example: Example) -> dict:
    """The workflow as the frontend saves it. Raises: playwright's Error naming what the frontend does not know."""
    workflow = json.loads(frontend.page.evaluate(_BUILD, [asdict(example), _GAP_PX]))
    # Random and per-machine values, replaced so that building again changes nothing.
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_NAME}/{example.name}"))
    workflow["extra"] = {"ds": {"scale": 0.8, "offset": [90, 150]}}
    return workflow


def main(names: Sequence[str]) -> None:
    """Write the examples called `names`, all of them if there are none. Raises: DevError."""
    chosen = [example for example in EXAMPLES if not names or example.name in names]
    chromium = find_browser()
    if chromium is None:
        raise DevError("No Chromium starts here: install one, or name it in the environment variable CHROMIUM.")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        prepare_base(base, ROOT, PACK_NAME)
        for variant in {example.variant for example in chosen}:
            write_pipeline(base / "models" / "diffusers" / folder_name(variant), variant)
        host = Path(os.environ["COMFYUI_PATH"])
        with (
            running_server(host, base, log=base / "server.log", cpu=True, settings=settings()) as server,
            launched_browser(chromium) as browser,
        ):
            for example in chosen:
                with open_frontend(browser, server.url) as frontend:
                    workflow = build(frontend, example)
                file = FOLDER / f"{example.name}.json"
                file.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", "utf-8")
                print(file.relative_to(ROOT))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DevError as error:
        sys.exit(f"error: {error}")

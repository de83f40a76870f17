"""Build subgraphs/*.json, the subgraph blueprints in ComfyUI's node library, with ComfyUI's own frontend.

    python -m cogvideox.devtools.build_blueprints

Each is a template of the toy as one node: what a user connects stays outside (a picture, a video, Save Video), and the
widgets that a user sets are on the node. Needs what build_example_workflow needs; after every change of a template or
of a node's widgets.
"""

import json
import sys
import uuid
from dataclasses import asdict, dataclass

from cogvideox.official_settings import OFFICIAL

from .build_example_workflow import BUILD, comfyui_version, opened_renderers
from .errors import DevError
from .example_workflows import Example
from .example_workflows.clips import image_to_video, text_to_video, video_to_video
from .example_workflows.stamp import stamp
from .frontend import Frontend
from .paths import PACK_NAME, ROOT

FOLDER = ROOT / "subgraphs"
_CATEGORY = "CogVideoX"


@dataclass(frozen=True)
class Blueprint:
    """A template as one node. name: the file's, which ComfyUI shows. outside: nodes that are not part of it.

    widgets: (name on the node, node inside, its widget), in the order that they are shown in.
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    example: Example
    outside: tuple[str, ...]
    widgets: tuple[tuple[str, str, str], ...]


def _widgets(size: str, *, frames: tuple[str, str] | None = None) -> tuple[tuple[str, str, str], ...]:
    """Those of every blueprint. size: the node with width and height; frames: another for the number of frames."""
    frames_node, frames_widget = frames or (size, "frames")
    return (
        ("checkpoint", "pipeline", "folder"),
        ("prompt", "positive", "text"),
        ("negative_prompt", "negative", "text"),
        ("width", size, "width"),
        ("height", size, "height"),
        ("frames", frames_node, frames_widget),
        ("seed", "sample", "seed"),
        ("steps", "sample", "steps"),
        ("cfg", "sample", "cfg"),
        ("sampler", "sample", "sampler"),
        ("dynamic_cfg", "sample", "dynamic_cfg"),
    )


_NANO = (
    "Set to CogVideoX-nano, the toy that comes with the pack; for real videos choose a checkpoint, its size, "
    f"{OFFICIAL['CogVideoX-5b'].steps} steps and its frame rate. Connect its video to Save Video before you press Run."
)
BLUEPRINTS = (
    Blueprint(
        "Text to Video (CogVideoX)",
        f"A video of what a text says. {_NANO}",
        ("cogvideox", "cogvideo", "t2v", "text to video"),
        text_to_video(),
        ("note", "save"),
        (*_widgets("latent"), ("fps", "video", "fps")),
    ),
    Blueprint(
        "Image to Video (CogVideoX)",
        f"A video that begins with a picture. {_NANO}",
        ("cogvideox", "cogvideo", "i2v", "image to video"),
        image_to_video(),
        ("note", "save", "picture"),
        (*_widgets("start"), ("fps", "video", "fps")),
    ),
    Blueprint(
        "Video to Video (CogVideoX)",
        f"A video after another one: denoise says how much is made new. {_NANO}",
        ("cogvideox", "cogvideo", "v2v", "video to video"),
        video_to_video(),
        ("note", "save", "file", "frames"),
        (*_widgets("encode", frames=("first", "length")), ("denoise", "sample", "denoise")),
    ),
)

# Runs in the page after BUILD: [numbers of the nodes outside, widgets] -> the serialized graph of the one node. A wrong
# name is an error here.
_PACK = """
async ([outside, widgets]) => {
  const inside = app.graph.nodes.filter(node => !outside.includes(Number(node.id)))
  const {subgraph, node} = app.graph.convertToSubgraph(new Set(inside))
  await new Promise(done => setTimeout(done, 500))
  // The frontend promotes widgets of its own choice: what comes from outside stays, and ours follow in their order.
  const linked = node.inputs.filter(input => input.link != null).map(input => input.name)
  for (const input of [...subgraph.inputs]) if (!linked.includes(input.name)) subgraph.removeInput(input)
  for (const [name, id, widget] of widgets) {
    const inner = subgraph.nodes.find(other => Number(other.id) === id)
    const slot = inner.inputs.find(input => input.widget?.name === widget)
    if (!slot) throw new Error(`${inner.type} has no widget ${widget}`)
    if (!subgraph.addInput(name, slot.type).connect(slot, inner)) throw new Error(`${name} cannot be connected`)
    // Else a widget of the same name that was promoted before would leave its value here.
    node.widgets.find(one => one.name === name).value = inner.widgets.find(one => one.name === widget).value
  }
  const names = [...linked, ...widgets.map(([name]) => name)]
  if (names.join() !== subgraph.inputs.map(input => input.name).join())
    throw new Error(`${subgraph.inputs.map(input => input.name)} are not ${names}`)
  for (const other of app.graph.nodes.filter(one => one !== node)) app.graph.remove(other)
  node.pos = [0, 0]
  node.setSize([400, node.computeSize()[1]])
  return JSON.stringify(app.graph.serialize())
}
"""


def build(frontend: Frontend, blueprint: Blueprint) -> dict:
    """The blueprint as ComfyUI's own are saved. Raises: playwright's Error naming what the frontend does not know."""
    frontend.page.evaluate(BUILD, asdict(blueprint.example))
    names = [spec.name for column in blueprint.example.columns for spec in column.nodes]
    number = {name: count for count, name in enumerate(names, 1)}
    outside = [number[name] for name in blueprint.outside]
    widgets = [(name, number[node], widget) for name, node, widget in blueprint.widgets]
    saved = json.loads(frontend.page.evaluate(_PACK, [outside, widgets]))
    (subgraph,) = saved["definitions"]["subgraphs"]
    _rename(saved, subgraph, blueprint)
    subgraph |= {"category": _CATEGORY, "description": blueprint.description}
    saved["extra"] = {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)}
    saved["groups"] = []
    stamp(saved, comfyui_version())
    return saved


def _rename(saved: dict, subgraph: dict, blueprint: Blueprint) -> None:
    """Give the node its title, and what is random the same values at every build."""

    def fixed(what: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_NAME}/{blueprint.name}/{what}"))

    for slot in (*subgraph["inputs"], *subgraph["outputs"]):
        slot["id"] = fixed(slot["name"])
    saved["id"] = fixed("workflow")
    saved["nodes"][0]["type"] = subgraph["id"] = fixed("subgraph")
    saved["nodes"][0]["title"] = subgraph["name"] = blueprint.name


def main() -> None:
    """Write all of them. Raises: DevError."""
    FOLDER.mkdir(exist_ok=True)
    with opened_renderers() as (classic, _):
        for blueprint in BLUEPRINTS:
            file = FOLDER / f"{blueprint.name}.json"
            file.write_text(json.dumps(build(classic, blueprint), indent=2, ensure_ascii=False) + "\n", "utf-8")
            print(file.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    try:
        main()
    except DevError as error:
        sys.exit(f"error: {error}")

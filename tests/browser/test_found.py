"""Nodes that are found, folded and typed into, in the real frontend: its search ranks, its widgets round."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.nodes import NODES

IDS = [node.GET_SCHEMA().node_id for node in NODES]
# The service that every search of the frontend asks, in sidebar and dialog: [id, title] of what it finds, in order.
_SEARCH = """
query => {
  const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
  const found = stores.get('nodeDef').nodeSearchService.searchNode(query, [], {limit: 64})
  return found.map(node => [node.name, node.display_name])
}
"""
_ADD = """
type => {
  const node = LiteGraph.createNode(type)
  node.pos = [300, 120]
  app.graph.add(node)
  return node.id
}
"""
# What is typed into a widget in the classic renderer ends in its setValue.
_TYPE = """
([id, name, value]) => {
  const node = app.graph.getNodeById(id), widget = node.widgets.find(widget => widget.name === name)
  widget.setValue(value, {e: new PointerEvent('pointerdown'), node, canvas: app.canvas})
  return widget.value
}
"""
# A word, and the node that it has to bring first of all nodes of a plain ComfyUI.
FIRST = {
    "t2v": "CogVideoXSample",
    "v2v": "CogVideoXEncodeVideo",
    "vid2vid": "CogVideoXEncodeVideo",
    "riflex": "CogVideoXPositions",
    "freenoise": "CogVideoXContextWindows",
    "CogVideoXPipeline": "CogVideoXLoadPipeline",
    "CogVideoXImageToVideoPipeline": "CogVideoXImageToVideo",
    "CogVideoXVideoToVideoPipeline": "CogVideoXEncodeVideo",
    "CogVideoXFunControlPipeline": "CogVideoXFunControl",
    "CogVideoXTransformer3DModel": "CogVideoXLoadModel",
    "AutoencoderKLCogVideoX": "CogVideoXLoadVAE",
    "T5EncoderModel": "CogVideoXLoadTextEncoder",
    "use_dynamic_cfg": "CogVideoXDynamicCFG",
    "load_lora_weights": "CogVideoXApplyLora",
    "apply lora": "CogVideoXApplyLora",
    "DownloadAndLoadCogVideoModel": "CogVideoXLoadPipeline",
    "DownloadAndLoadCogVideoGGUFModel": "CogVideoXLoadModel",
    "DownloadAndLoadCogVideoControlNet": "CogVideoXLoadControlNet",
    "CogVideoXModelLoader": "CogVideoXLoadModel",
    "CogVideoXVAELoader": "CogVideoXLoadVAE",
    "CogVideoTextEncode": "CogVideoXEncodeText",
    "CogVideoImageEncodeFunInP": "CogVideoXFunInpaint",
    "CogVideoControlNet": "CogVideoXApplyControlNet",
    "CogVideoLoraSelect": "CogVideoXApplyLora",
    "CogVideoLoraSelectComfy": "CogVideoXApplyLora",
    "CogVideoContextOptions": "CogVideoXContextWindows",
    "CogVideoSampler": "CogVideoXSample",
    "CogVideoDecode": "CogVideoXDecode",
    # The model's name, in full or in part, and what is wanted of it.
    "cogvideox lora": "CogVideoXApplyLora",
    "cogvideo lora": "CogVideoXApplyLora",
    "cog load lora": "CogVideoXApplyLora",
    "cogvideo controlnet": "CogVideoXLoadControlNet",
    "cogvideox sampler": "CogVideoXSample",
    "cog ksampler": "CogVideoXSample",
    "cogvideox t2v": "CogVideoXSample",
    "cog i2v": "CogVideoXImageToVideo",
    "cogvideo v2v": "CogVideoXEncodeVideo",
    "cog prompt": "CogVideoXEncodeText",
    "cogvideox vae decode": "CogVideoXDecode",
    "cog vae decode": "CogVideoXDecode",
    "cogvideox gguf loader": "CogVideoXLoadModel",
    "cogvideox checkpoint loader": "CogVideoXLoadPipeline",
    "cogvideox dataset": "CogVideoXTrainingClips",
    "cogvideox vram": "CogVideoXMemoryForecast",
    "cogvideox teacache": "CogVideoXStepCache",
}
# A word that ComfyUI's own nodes have in their ids or titles, a node of ours that it has to find among the first two of
# ours, and how many others may stand before these: the frontend puts a match in the id or title before every search
# word.
AMONG = {
    "load lora": ("CogVideoXApplyLora", 5),
    "cog lora": ("CogVideoXApplyLora", 0),  # the id of CogVideoX Save LoRA is shorter
    "cogvideo sampler": ("CogVideoXSample", 0),  # so is that of CogVideoX Sampler Select
    "apply cogvideo controlnet": ("CogVideoXApplyControlNet", 0),
    "LoraLoaderModelOnly": ("CogVideoXApplyLora", 1),
    "load vae": ("CogVideoXLoadVAE", 1),
    "load controlnet": ("CogVideoXLoadControlNet", 2),
    "apply controlnet": ("CogVideoXApplyControlNet", 4),
    "load checkpoint": ("CogVideoXLoadPipeline", 3),
    "save lora": ("CogVideoXSaveLora", 2),
    "i2v": ("CogVideoXImageToVideo", 1),
    "image to video": ("CogVideoXImageToVideo", 3),
    "text to video": ("CogVideoXSample", 4),
    "video sampler": ("CogVideoXSample", 1),
    "lora": ("CogVideoXApplyLora", 10),
    "controlnet": ("CogVideoXApplyControlNet", 12),
    "vae decode": ("CogVideoXDecode", 8),
    "text encode": ("CogVideoXEncodeText", 12),
    "inpaint": ("CogVideoXFunInpaint", 6),
    "context windows": ("CogVideoXContextWindows", 4),
    "train lora": ("CogVideoXTrainLora", 2),
    "save video": ("CogVideoXDecodeToFile", 5),
}

_LATER_OF_OURS = {"save video": 3}  # three others begin with Save and have Video in CogVideoX


@pytest.mark.parametrize("query", ["cog", "cogvideo", "CogVideoX"])
def test_the_models_name_brings_all_nodes_first(one_page: Frontend, query: str) -> None:
    found = [name for name, _ in one_page.page.evaluate(_SEARCH, query)]
    nodes = [name for name in found if not name.startswith("SubgraphBlueprint.")]  # ours as well
    assert set(nodes[: len(IDS)]) == set(IDS)


@pytest.mark.parametrize("query", FIRST)
def test_the_first_that_is_found(one_page: Frontend, query: str) -> None:
    # Who comes from the wrapper or from diffusers types the name that they know.
    found = one_page.page.evaluate(_SEARCH, query)
    assert found and found[0][0] == FIRST[query], found[:5]


@pytest.mark.parametrize("query", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
def test_a_scheduler_of_diffusers_is_two_nodes(one_page: Frontend, query: str) -> None:
    # diffusers' class has both the noise levels and the equations.
    found = [name for name, _ in one_page.page.evaluate(_SEARCH, query)]
    assert sorted(found[:2]) == ["CogVideoXSampler", "CogVideoXScheduler"]


@pytest.mark.parametrize("query", AMONG)
def test_among_the_first_that_are_found(one_page: Frontend, query: str) -> None:
    wanted, most = AMONG[query]
    found = one_page.page.evaluate(_SEARCH, query)
    before = next(index for index, (name, _) in enumerate(found) if name in IDS)
    assert before <= most, found[: before + 1]
    ours = [name for name, _ in found if name in IDS]
    assert ours.index(wanted) <= _LATER_OF_OURS.get(query, 1), ours
    words = query.lower().split()
    for name, title in found[:before]:  # nothing is before ours by chance
        assert any(all(word in text.lower() for word in words) for text in (name, title)), (name, title)


@pytest.mark.parametrize("task", ["Text to Video", "Image to Video", "Video to Video"])
def test_a_blueprint_is_among_the_first_for_its_task(one_page: Frontend, task: str) -> None:
    """Named as ComfyUI's own are: a title that begins with what was typed comes before one that has it inside."""
    found = [title for _, title in one_page.page.evaluate(_SEARCH, task.lower())]
    assert f"{task} (CogVideoX)" in found[:7], found[:12]


def test_a_picture_is_begun_with_by_the_node_of_every_model(one_page: Frontend) -> None:
    """“i2v” brought CogVideoX Fun Inpaint before it, which is for the models of one family."""
    ours = [name for name, _ in one_page.page.evaluate(_SEARCH, "i2v") if name in IDS]
    assert ours[0] == "CogVideoXImageToVideo" and "CogVideoXFunInpaint" in ours, ours


def test_the_search_dialog_shows_it_first(one_page: Frontend) -> None:
    page = one_page.page
    page.evaluate("() => app.graph.clear()")
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.keyboard.type("CogVideoSampler")
    expect(page.get_by_text("CogVideoX Sampler", exact=True).first).to_be_visible()
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.graph.nodes.length === 1")
    assert page.evaluate("() => app.graph.nodes[0].type") == "CogVideoXSample"


def test_all_are_under_extensions(one_page: Frontend) -> None:
    # A node with an essentials category is listed among ComfyUI's own, apart from the others of its pack.
    sources = """ids => {
      const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
      return ids.map(id => stores.get('nodeDef').nodeDefsByName[id].nodeSource.type)
    }"""
    assert set(one_page.page.evaluate(sources, IDS)) == {"custom_nodes"}


@pytest.mark.parametrize(
    ("node", "name", "typed", "kept"),
    [
        ("CogVideoXEmptyLatent", "frames", 21, 21),
        ("CogVideoXEmptyLatent", "frames", 161, 161),
        ("CogVideoXImageToVideo", "frames", 85, 85),
        ("CogVideoXContinueVideo", "frames", 13, 13),
        ("CogVideoXTrainingClips", "frames", 5, 5),
        ("CogVideoXTrainingClips", "fps", 23.976, 23.976),
        ("CogVideoXDecodeToFile", "fps", 29.97, 29.97),
        ("CogVideoXTrainLora", "learning_rate", 2.5e-6, 2.5e-6),
        ("CogVideoXTrainLora", "learning_rate", 1e-8, 1e-8),
    ],
)
def test_typed_numbers_stay(one_page: Frontend, node: str, name: str, typed: float, kept: float) -> None:
    # 21 frames became 25, 23.976 frames a second 23.98 and a learning rate of 2.5e-6 one of 3e-6.
    id = one_page.page.evaluate(_ADD, node)
    assert one_page.page.evaluate(_TYPE, [id, name, typed]) == pytest.approx(kept, abs=1e-12)


@pytest.fixture(scope="module")
def vue_page(open_as: Callable[..., AbstractContextManager[Frontend]]) -> Iterator[Frontend]:
    """A page in the newer of the two renderers, which makes nodes of HTML."""
    with open_as(Comfy__VueNodes__Enabled=True, Comfy__Minimap__Visible=False) as opened:
        yield opened


def test_typed_frames_stay_in_the_newer_renderer(vue_page: Frontend) -> None:
    # It has number widgets of its own.
    page = vue_page.page
    id = page.evaluate(_ADD, "CogVideoXEmptyLatent")
    field = page.locator(f'[data-node-id="{id}"] input').nth(2)
    field.fill("21")
    field.press("Enter")
    assert page.evaluate("id => app.graph.getNodeById(id).widgets.find(w => w.name === 'frames').value", id) == 21


def test_rare_inputs_are_folded(vue_page: Frontend) -> None:
    # A node with everything open hides what matters. The classic renderer shows every widget, whatever the schema says.
    page = vue_page.page
    for schema in (node.GET_SCHEMA() for node in NODES):
        folded = [entry.id for entry in schema.inputs if entry.advanced]
        if not folded:
            continue
        # Not clear(), which gives the next node the same id: the frontend keeps what it knows of a widget by the id.
        page.evaluate("() => [...app.graph.nodes].forEach(node => app.graph.remove(node))")
        node = page.locator(f'[data-node-id="{page.evaluate(_ADD, schema.node_id)}"]')
        more = node.get_by_text("Show advanced")
        expect(more.first).to_be_visible()
        for name in folded:
            expect(node.get_by_text(name, exact=True)).to_have_count(0)
        more.first.click()
        for name in folded:
            expect(node.get_by_text(name, exact=True).first).to_be_visible()

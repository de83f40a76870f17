import pytest

from cogvideox.devtools.errors import DevError
from cogvideox.devtools.workflow import convert_to_api

# The shape of /object_info, with one node per thing that the conversion must get right.
NODES = {
    "Load": {"input": {"required": {"name": [["a", "b"], {}]}, "optional": {}}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "sampler": ["COMBO", {"options": ["ddim", "randomize"], "default": "ddim"}],
            },
            "optional": {"hint": ["STRING", {"forceInput": True}], "denoise": ["FLOAT", {"default": 1.0}]},
        }
    },
    "Save": {
        "input": {
            "required": {
                "video": ["LATENT"],
                "codec": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "auto", "inputs": {"required": {}}},
                            {"key": "h264", "inputs": {"required": {"crf": ["FLOAT", {"default": 23.0}]}}},
                        ]
                    },
                ],
                "prefix": ["STRING", {"default": "x"}],
            }
        }
    },
}
SEEDED = [7, "randomize", 4, "ddim", 0.5]


def node(id_, type_, inputs=(), values=(), mode=0, outputs=()):
    return {
        "id": id_,
        "type": type_,
        "mode": mode,
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"type": kind} for kind in outputs],
        "widgets_values": list(values),
    }


def workflow(*nodes, links=()):
    return {"nodes": list(nodes), "links": [list(link) for link in links]}


def chain(*between, model_link=1, links=()):
    """Load -> (between) -> Sample -> Save."""
    return workflow(
        node(1, "Load", values=["b"], outputs=["MODEL"]),
        *between,
        node(3, "Sample", [("model", "MODEL", model_link)], SEEDED, outputs=["LATENT"]),
        node(4, "Save", [("video", "LATENT", 9)], ["h264", 18.0, "out"]),
        links=[(1, 1, 0, 3, 0, "MODEL"), (9, 3, 0, 4, 0, "LATENT"), *links],
    )


def patch(mode=0):
    return node(2, "Sample", [("text", "STRING", None), ("model", "MODEL", 1)], SEEDED, mode, ["MODEL"])


WORKFLOWS = {
    "plain": chain(),
    "control word that is an option too": workflow(node(3, "Sample", values=[7, "fixed", 4, "randomize", 0.5])),
    "older than two widgets": workflow(node(3, "Sample", values=[7, "fixed", 4])),
    "dynamic combo without choices": workflow(node(4, "Save", values=["auto", "out"])),
    "bypassed node": chain(patch(mode=4), model_link=2, links=[(2, 2, 0, 3, 0, "MODEL")]),
    "reroute": chain(node(2, "Reroute", [("", "*", 1)], outputs=["*"]), model_link=2, links=[(2, 2, 0, 3, 0, "MODEL")]),
    "muted node": chain(patch(mode=2), model_link=2, links=[(2, 2, 0, 3, 0, "MODEL")]),
    "notes": chain(node(8, "Note", values=["hi"]), node(9, "MarkdownNote", values=["hi"])),
}


def test_links_and_widgets_reach_their_inputs():
    # A value one place off would run another seed or step count than the picture shows.
    assert convert_to_api(WORKFLOWS["plain"], NODES) == {
        "1": {"class_type": "Load", "inputs": {"name": "b"}},
        "3": {
            "class_type": "Sample",
            "inputs": {"model": ["1", 0], "seed": 7, "steps": 4, "sampler": "ddim", "denoise": 0.5},
        },
        "4": {"class_type": "Save", "inputs": {"video": ["3", 0], "codec": "h264", "codec.crf": 18.0, "prefix": "out"}},
    }


@pytest.mark.parametrize("through", ["bypassed node", "reroute"])
def test_link_comes_through_what_only_passes_it_on(through):
    assert convert_to_api(WORKFLOWS[through], NODES) == convert_to_api(WORKFLOWS["plain"], NODES)


def test_muted_node_and_what_it_fed_are_left_out():
    api = convert_to_api(WORKFLOWS["muted node"], NODES)
    assert "2" not in api and "model" not in api["3"]["inputs"]


def test_widget_driven_by_a_link_still_takes_its_place_among_the_values():
    linked = workflow(
        node(1, "Load", values=["b"], outputs=["INT"]),
        node(3, "Sample", [("steps", "INT", 1)], SEEDED),
        links=[(1, 1, 0, 3, 0, "INT")],
    )
    assert convert_to_api(linked, NODES)["3"]["inputs"] == {
        "seed": 7,
        "steps": ["1", 0],
        "sampler": "ddim",
        "denoise": 0.5,
    }


def test_value_of_a_primitive_is_the_one_in_its_target():
    driven = workflow(
        node(1, "PrimitiveNode", values=[99], outputs=["INT"]),
        node(3, "Sample", [("steps", "INT", 1)], SEEDED),
        links=[(1, 1, 0, 3, 0, "INT")],
    )
    api = convert_to_api(driven, NODES)
    assert set(api) == {"3"} and api["3"]["inputs"]["steps"] == 4


def test_newer_file_format_and_api_format_are_read_too():
    newer = chain()
    newer["links"] = [
        {"id": row[0], "origin_id": row[1], "origin_slot": row[2], "target_id": row[3]} for row in newer["links"]
    ]
    api = convert_to_api(newer, NODES)
    assert api == convert_to_api(chain(), NODES)
    assert convert_to_api(api, NODES) == api


def test_node_that_the_server_lacks_is_named():
    with pytest.raises(DevError, match="no node CogVideoXSample .node 5 .*failed to import"):
        convert_to_api(workflow(node(5, "CogVideoXSample")), NODES)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_agrees_with_comfy_cli(name):
    reference = pytest.importorskip("comfy_cli.workflow_to_api").convert_ui_to_api(WORKFLOWS[name], NODES)
    expected = {id_: {"class_type": entry["class_type"], "inputs": entry["inputs"]} for id_, entry in reference.items()}
    assert convert_to_api(WORKFLOWS[name], NODES) == expected

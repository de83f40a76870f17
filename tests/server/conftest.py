"""One real ComfyUI server for all tests of this folder, with the pack and tiny pipelines in a base of its own."""

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cogvideox.devtools import client, server
from cogvideox.devtools.comfyui import prepare_base
from cogvideox.devtools.embedded_checkpoint import folder_name, write_pipeline
from cogvideox.devtools.paths import PACK_NAME, ROOT
from cogvideox.tests.file_server import FileServer, running_hub
from cogvideox.tests.graphs import (
    IMAGES,
    LATENTS,
    SAMPLE,
    Made,
    collect,
    node,
    saved_latent,
    text_to_video,
    with_inputs,
)
from cogvideox.tests.part_graphs import only
from cogvideox.tests.server.pack_beside import BESIDE
from cogvideox.tests.support import write_fp32
from cogvideox.tests.task_graphs import write_media

VARIANTS = ("2b", "5b", "1.5-5B", "5b-I2V", "1.5-5B-I2V", "Fun-5b-InP", "Fun-V1.5-5b-InP", "Fun-5b-Control")
SERVED = {folder_name(variant): variant for variant in VARIANTS}  # what graphs call the tiny pipelines
HUB_TOKEN = "hf_onlyForTheHubOnThisMachine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith("tests/server/"):
            item.add_marker("server")


@dataclass(frozen=True)
class Host:
    """A running ComfyUI and the base directory it uses."""

    server: server.Server
    base: Path
    hub: FileServer  # what HF_ENDPOINT names for the server, with HUB_TOKEN as its token

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def pipelines(self) -> Path:
        return self.base / "models" / "diffusers"

    def pipeline(self, name: str) -> Path:
        """The folder of a tiny pipeline, one of SERVED, which is written when it is first asked for."""
        folder = self.pipelines / name
        return folder if folder.exists() else write_pipeline(folder, SERVED[name])

    def run(
        self,
        graph: dict,
        on_event: Callable[[str, dict], None] | None = None,
        extra_data: dict | None = None,
    ) -> client.RunResult:
        """Run a workflow to its end, however it ends. The tiny pipelines that it names are there."""
        values = (value for each in graph.values() for value in each["inputs"].values() if isinstance(value, str))
        for name in SERVED.keys() & set(values):
            self.pipeline(name)
        return client.run_workflow(self.url, graph, on_event, timeout_s=120, extra_data=extra_data)

    def schema(self, node_type: str) -> dict:
        """What the server says of one node; of all of them it takes a second."""
        return json.loads(server.request(f"{self.url}/object_info/{node_type}"))[node_type]

    def offered(self, node_type: str, name: str) -> list[str]:
        """What the list of a node's required input offers."""
        return self.schema(node_type)["input"]["required"][name][1]["options"]

    def make(self, graph: dict, outputs: Sequence[str] = (IMAGES, LATENTS)) -> Made:
        """Run what these nodes of a workflow need, which must succeed, and read back what they saved."""
        return collect(self.run(only(graph, *(name for name in outputs if name in graph))), self.server.output)

    def latents(self, graph: dict, *node_ids: str) -> list[torch.Tensor]:
        """Run what these nodes of a workflow save, which must succeed; their latents, each [B, 16, T, H/8, W/8]."""
        result = self.run(only(graph, *node_ids))
        assert result.error is None, str(result.error)
        saved = [saved_latent(result, self.server.output, node_id) for node_id in node_ids]
        assert all(latent is not None for latent in saved)
        return [latent for latent in saved if latent is not None]

    def latent(self, graph: dict) -> torch.Tensor:
        """Run a workflow as far as to its latent, which must succeed; the latent, [B, 16, T, H/8, W/8]."""
        return self.latents(graph, LATENTS)[0]

    def make_again(self, graph: dict) -> Made:
        """As `make`, but nothing from the sampler on comes out of ComfyUI's cache."""
        result = self.run(only(_as_another_run(graph), IMAGES, LATENTS))
        assert SAMPLE in result.executed
        return collect(result, self.server.output)

    def latent_again(self, graph: dict) -> torch.Tensor:
        """As `latent`, but nothing from the sampler on comes out of ComfyUI's cache."""
        return self.latent(_as_another_run(graph))

    def free(self) -> None:
        """Unload every model and forget every result, for certain.

        ComfyUI notes the wish and may sleep on: it is fulfilled at the latest after the next workflow.
        """
        client.free(self.url, settle_s=0)
        self.run({"any": node("PreviewAny", source=uuid.uuid4().hex)})

    def log(self) -> str:
        return self.server.log.read_text("utf-8", "replace")


def _as_another_run(graph: dict) -> dict:
    """`graph` with an input that no node has: it counts for the cache and for nothing else."""
    return with_inputs(graph, SAMPLE, run=uuid.uuid4().hex)


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The server, for the whole session."""
    base = tmp_path_factory.mktemp("comfyui")
    prepare_base(base, ROOT, PACK_NAME)
    for folder in ("vae", "diffusion_models", "text_encoders", "loras"):
        (base / "models" / folder).mkdir(exist_ok=True)
    (base / "custom_nodes" / "beside.py").write_text(BESIDE, "utf-8")
    host = Path(os.environ["COMFYUI_PATH"])
    with contextlib.ExitStack() as cleanup, pytest.MonkeyPatch.context() as environment:
        hub = cleanup.enter_context(running_hub(environment))
        environment.setenv("HF_TOKEN", HUB_TOKEN)
        # tiny tensors gain nothing from threads, which wait for each other when the machine is busy
        environment.setenv("OMP_NUM_THREADS", "1")
        log = base / "server.log"
        running = cleanup.enter_context(server.running_server(host, base, log=log, cpu=True))
        environment.undo()  # it was for the server
        yield Host(running, base, hub)


@pytest.fixture(scope="session")
def wide(comfyui: Host) -> str:
    """The name of a pipeline whose text is 48 wide, not 32."""
    return write_pipeline(comfyui.pipelines / "CogVideoX-tiny-wide", "5b", text_embed_dim=48).name


@pytest.fixture(scope="session")
def exact(comfyui: Host) -> str:
    """The name of a 5b pipeline whose weights are fp32 on disk."""
    return write_fp32(comfyui.pipelines / "CogVideoX-tiny-exact", "5b").name


@pytest.fixture(scope="session")
def media(comfyui: Host) -> None:
    """A picture, a clip and a mask of the right size in the server's input folder; see task_graphs."""
    write_media(comfyui.base / "input")


@pytest.fixture(scope="module")
def untouched(comfyui: Host) -> torch.Tensor:
    """The latent of a plain run before this module's tests."""
    return comfyui.latent(text_to_video())


@pytest.fixture
def refused(comfyui: Host, untouched: torch.Tensor) -> Callable[..., client.RunError]:
    """refused(graph, node type, words...): the run ends at that node, with those words, before a step was made.

    Returns the error.
    """

    def check(graph: dict, node_type: str, *words: str) -> client.RunError:
        result = comfyui.run(graph)
        assert result.error is not None, "the run succeeded"
        assert result.error.node_type == node_type, str(result.error)
        for word in words:
            assert word in result.error.message, result.error.message
        # nodes that encode pictures show how far they are as well
        begun = {graph[node]["class_type"] for node, *_ in result.progress}
        assert not any("Sampl" in name or "Invert" in name for name in begun), f"{begun} had begun"
        return result.error

    return check

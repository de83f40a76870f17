"""CogVideoX Memory Forecast on a real server, alone in its graph as a user would ask it."""

from cogvideox.tests.graphs import PIPELINE, node, text_to_video

FORECAST = "forecast"


def test_forecast_is_shown_without_a_run(comfyui):
    """Before a run of an hour one asks it alone: no other output makes it run, and its text reaches the browser."""
    graph = {PIPELINE: text_to_video()[PIPELINE]}
    inputs = {"width": 96, "height": 64, "frames": 9, "batch_size": 1, "card_gb": 8.0}
    links = {"model": [PIPELINE, 0], "clip": [PIPELINE, 1], "vae": [PIPELINE, 2]}
    graph[FORECAST] = node("CogVideoXMemoryForecast", **inputs, **links)
    result = comfyui.run(graph)
    assert result.error is None, str(result.error)
    (text,) = (shown for node_id, shown in result.texts if node_id == FORECAST)
    assert text.startswith("CogVideoX-5b, 96 × 64, 9 frames. In GiB, counted and not measured:\n|  | weights |")
    assert "A card of 8 GB has about 7.0 GiB free" in text and "weight_dtype: default." in text
    # Markup of ours would be shown as such: the text holds none that is escaped on its way.
    assert "&" not in text

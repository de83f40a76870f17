"""What another ComfyUI on the same machine does: it starts a Ray, asks it for something, and ends it."""

from cogvideox.parallel import engine


def start_ray() -> None:
    """Raises where its Ray does not work, or is another process's."""
    ray = engine.start("", 0)
    assert ray.get(ray.remote(lambda: 42).remote()) == 42
    assert len(ray.nodes()) == 1 and not ray.util.list_named_actors(all_namespaces=True)
    engine.shut_down()

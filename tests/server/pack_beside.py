"""Another pack, which the server of these tests has beside ours: a node with which a run takes long at little work."""

SLOWER = "SlowerSteps"
# Every ten seconds ComfyUI looks for garbage, which takes half a second where it walks through the objects of all
# imported libraries.
BESIDE = f"""
import gc, time

class {SLOWER}:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"model": ("MODEL",), "seconds": ("FLOAT", {{}})}}}}

    def patch(self, model, seconds):
        def wait(args):
            time.sleep(seconds)
            return args["denoised"]

        slower = model.clone()
        slower.set_model_sampler_post_cfg_function(wait)
        return (slower,)

NODE_CLASS_MAPPINGS = {{"{SLOWER}": {SLOWER}}}
gc.freeze()
"""

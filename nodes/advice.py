"""What a user can do next, in terms of nodes: the one table that completes the messages of the rooms below.

UserError's `advice` is a key of it; see errors.py. tests/nodes/test_advice.py holds both sides to each other.
"""

ADVICE = {
    "apply a LoRA first": "Connect the model after Apply CogVideoX LoRA or another LoRA loader.",
    "apply the LoRA to weights": "Remove that node, or apply the LoRA with Apply CogVideoX LoRA.",
    "combine prompts": "Join prompts with Conditioning (Combine) instead of Conditioning (Concat).",
    "condition for text": (
        "Connect the output of CogVideoX Text Encode alone, or choose the model that this conditioning is for."
    ),
    "condition for image": (
        "Pass positive and negative through CogVideoX Image to Video, or choose the model that this conditioning is "
        "for."
    ),
    "condition for inpaint": (
        "Pass positive and negative through CogVideoX Fun Inpaint, or choose the model that this conditioning is for."
    ),
    "condition for control": (
        "Pass positive and negative through CogVideoX Fun Control, or choose the model that this conditioning is for."
    ),
    "condition for void": (
        "Pass positive and negative through ComfyUI's VOID Inpaint Conditioning, or choose the model that this "
        "conditioning is for."
    ),
    "connect an inverted latent": "Connect the latent of Invert CogVideoX Video directly.",
    "decode exactly": "Or decode with CogVideoX Decode.",
    "encode the prompt": (
        "Load the text encoder with Load CogVideoX Text Encoder and encode the prompt with CogVideoX Text Encode."
    ),
    "hold the last control frame": (
        "Or switch on hold_last_frame of Apply CogVideoX ControlNet, which repeats the last frame."
    ),
    "invert with the plain model": "Give Invert CogVideoX Video the model as it is before CogVideoX Follow Video.",
    "load a control net": "Load one with Load CogVideoX ControlNet.",
    "load with this pack": "Connect the MODEL of Load CogVideoX Model or Load CogVideoX Pipeline.",
    "make a latent": "Make it with Empty CogVideoX Latent, or encode a video with a CogVideoX VAE.",
    "sample VOID with this pack": (
        "Use CogVideoX Sampler Select (ddim) instead of VOIDSampler: it runs the same equations. The VOID conditioning "
        "and noise nodes stay as they are."
    ),
    "set an area of a video": (
        "Use Conditioning (Set Area with Percentage for Video), or a mask with set_cond_area default."
    ),
    "stretch positions": "CogVideoX Positions stretches it.",
    "take a model of this pack to sample": (
        "Connect a model from Load CogVideoX Model or Load CogVideoX Pipeline. Use KSampler for other models."
    ),
}

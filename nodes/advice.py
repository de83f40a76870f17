"""What a user can do next, as sentences that name nodes: they complete the messages of the packages below.

UserError's `advice` is one of its keys (errors.py); tests/nodes/test_advice.py compares them with those in use.
"""

ADVICE = {
    "apply a LoRA first": "Connect the model after Load CogVideoX LoRA or another LoRA loader.",
    "apply the LoRA to weights": "Remove the node that adds it, or apply the LoRA with Load CogVideoX LoRA.",
    "choose a scheduler": "Use the scheduler simple or beta, or CogVideoX Scheduler.",
    "combine prompts": "Join prompts with Conditioning (Combine) instead of Conditioning (Concat).",
    "connect before the ranks": (
        "Connect the node that merges, saves or trains to the model before CogVideoX Parallel."
    ),
    "condition for text": (
        "Connect the output of CogVideoX Text Encode directly, or choose the model that this conditioning is for."
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
    "connect an inverted latent": "Connect the output of Invert CogVideoX Video directly.",
    "decode exactly": "You can also decode with CogVideoX Decode.",
    "encode the prompt": (
        "Load the text encoder with Load CogVideoX Text Encoder and encode the prompt with CogVideoX Text Encode."
    ),
    "finish the download": "The node CogVideoX Download does so: choose the same checkpoint there and queue it.",
    "forecast the memory": (
        "Empty CogVideoX Latent has all three, and CogVideoX Memory Forecast says beforehand what they take."
    ),
    "hold the last frame": "You can also switch on hold_last_frame, which repeats the last frame.",
    "hold the last control frame": (
        "You can also switch on hold_last_frame in Apply CogVideoX ControlNet, which repeats the last frame."
    ),
    "invert a video": "Add noise to a video with Invert CogVideoX Video, or with the samplers euler and ddim.",
    "invert with the plain model": (
        "Connect Invert CogVideoX Video to the model before CogVideoX Follow Video, not after it."
    ),
    "keep the schedule": "Remove the ModelSampling node between the loader and the sampler.",
    "less memory on each card": (
        "The next run starts the processes again: make the video smaller or shorter, or add cards."
    ),
    "leave the address empty": "Or leave address empty for the cards of this machine.",
    "load a control net": "Load a control net with Load CogVideoX ControlNet.",
    "load the file again": "Queue the prompt again, which loads the new one.",
    "load with this pack": "Connect a model from Load CogVideoX Model or Load CogVideoX Pipeline.",
    "make a mask": "Connect a MASK output (Convert Image to Mask makes one of pictures).",
    "make a latent": "Create a latent with Empty CogVideoX Latent, or encode a video with a CogVideoX VAE.",
    "restart for another Ray": "Restart ComfyUI.",
    "run again or on one card": (
        "Queue the workflow again, and all of them start. Bypass CogVideoX Parallel to run on one card."
    ),
    "run on one card": "Bypass CogVideoX Parallel to run on one card.",
    "sample a mask in one run": (
        "Sample the masked video in one run, with CogVideoX Sampler or KSampler. To sample in parts, remove the mask "
        "from all of them and put the kept part back in the end, with Image Composite Masked."
    ),
    "save only LoRAs": (
        "Remove the node that adds it. To save the weights with all patches merged, use Save CogVideoX Model instead."
    ),
    "scale first frames alike": "It is image_scale of CogVideoX Image to Video.",
    "sample VOID with this pack": (
        "Use CogVideoX Sampler Select (ddim) instead of VOIDSampler: it runs the same equations. Keep the VOID "
        "conditioning and noise nodes."
    ),
    "say the family": (
        "If it is CogVideoX-2b-img2vid, choose that at family of the loader, Load CogVideoX Pipeline or Load CogVideoX "
        "Model. Otherwise pass positive and negative through CogVideoX Fun Control."
    ),
    "set an area of a video": (
        "Use Conditioning (Set Area with Percentage for Video), or Conditioning (Set Mask) with set_cond_area default."
    ),
    "start from noise": "Set denoise to 1, use CogVideoX Scheduler, or encode a video to start from.",
    "stretch positions": "CogVideoX Positions stretches the table with resample_table.",
    "switch off what starts Ray": "Switch off the other node pack that uses Ray, and restart ComfyUI.",
    "switch weights off": "You can also switch prompt_weights off.",
    "take the node out": "Remove it from between the loader and the sampler.",
    "use plain windows": "That is, switch off retain_start_image and split_prompts in CogVideoX Context Windows.",
}

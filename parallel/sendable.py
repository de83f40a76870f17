"""What of a run's options the ranks can be told."""

from typing import Any

from ..errors import UserError
from ..host.exact_attention import exact_attention
from ..keys import ATTENTION_OVERRIDE, read_compiled_blocks


def require_sendable(transformer_options: dict[str, Any]) -> bool:
    """Whether attention is to be torch's own (host.exact_attention); everything else that the ranks have to know is
    with the positions.

    Raises UserError for what other nodes have put into the model's blocks, naming it.
    """
    override = transformer_options.get(ATTENTION_OVERRIDE)
    found = [
        *(name for name, patches in transformer_options.get("patches", {}).items() if patches),
        *(
            f"{name} in place of a block"
            for name, patches in transformer_options.get("patches_replace", {}).items()
            if patches
        ),
        *(["an attention override"] if override not in (None, exact_attention) else []),
        *(["CogVideoX Compile"] if read_compiled_blocks(transformer_options) else []),
    ]
    if found:
        raise UserError(
            f"What another node has put into the model's blocks cannot be sent to other processes: {', '.join(found)}. "
            "Take that node out, or run on one card without CogVideoX Parallel."
        )
    return override is exact_attention

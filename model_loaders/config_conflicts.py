"""The one message for a config that its weights contradict."""

from collections.abc import Sequence

from ..errors import UserError


def config_conflict(differences: Sequence[str], source: str, component: str, is_in_header: bool) -> UserError:
    """The error for a config and weights of different models.

    differences: what the config says against what the weights say, in words. source: path for messages. component: in
    words. is_in_header: whether the config stands in the header of the weights' file.
    """
    found = f"do not belong together: {'; '.join(differences)} (config against weights)."
    if is_in_header:
        return UserError(
            f"The config in the header of {source} and the weights of the file {found} Download the file again, or "
            "save the model again."
        )
    return UserError(
        f"config.json and the weights in {source} {found} Put the config.json of this {component} into the folder of "
        "its weights."
    )

"""What a user can do something about. Every message says what was found, what is expected and what to do."""


class UserError(Exception):
    """A mistake in what a user has given, or something that went wrong outside of the pack."""


class CheckpointError(UserError):
    """A file or folder does not hold the weights that were asked for."""


class GeometryError(UserError):
    """Width, height, frames or latent channels do not fit the model."""


class ScheduleError(UserError):
    """No run of the model has these steps."""


class ConditioningError(UserError):
    """CONDITIONING does not come from this model family's text encoder."""


class NumericsError(UserError):
    """The model's output is no longer a number."""


class TrainingError(UserError):
    """A dataset, a recipe or a checkpoint that nothing can be trained with."""

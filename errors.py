"""What a user can do something about. Every message says what was found, what is expected and what to do."""


class UserError(Exception):
    """A mistake in what a user has given, or something that went wrong outside of the pack."""

"""The error that a method raises when it cannot be applied as asked."""


class MethodError(ValueError):
    """A method's configuration does not fit the model. The message is one sentence that says what would."""

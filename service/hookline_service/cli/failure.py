"""The error of a command, as one sentence for the user."""


class CommandError(Exception):
    """Ends the command: the text goes to standard error, without a traceback."""

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.code = code

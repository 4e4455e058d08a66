"""Where the text of a secret setting comes from: the environment, a file, or a command.

Each secret setting NAME has three variables, of which at most one may be set: NAME holds the text,
NAME_FILE names a file of it, NAME_COMMAND a command that prints it. A command is the way to a key
management service: it decrypts a key that is stored encrypted (decision 28).

No error holds any part of a secret. What a command writes to standard error is shown.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

FILE_SUFFIX: Final = "_FILE"
COMMAND_SUFFIX: Final = "_COMMAND"
COMMAND_TIMEOUT_S: Final = 30.0
"""Default of HOOKLINE_SECRET_COMMAND_TIMEOUT_S."""
MAX_SECRET_BYTES: Final = 65_536
_MAX_SHOWN: Final = 200


class SecretSourceError(ValueError):
    """A secret cannot be read; the text is the whole sentence, and begins with the variable."""


class SecretSource(Protocol):
    """Where the text of one secret comes from."""

    @property
    def variable(self) -> str:
        """The variable that names it."""

    def read(self) -> str:
        """Return the text, without surrounding whitespace. Raises `SecretSourceError`."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file, such as a mounted Secret; only its owner and its group may have access to it."""

    variable: str
    path: Path

    def read(self) -> str:
        """Read it anew."""
        named = f"{self.variable} names {self.path}, which"
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(MAX_SECRET_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SecretSourceError(f"{named} cannot be read: {reason}") from None
        if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
            raise SecretSourceError(
                f"{named} every user of the machine has access to: its mode is"
                f" {stat.S_IMODE(mode):04o}. Allow only its owner and group (chmod 0440; for a"
                " Kubernetes Secret `defaultMode: 0440` and `fsGroup`)"
            )
        return _text_of(content, named)


@dataclass(frozen=True, slots=True)
class CommandSource:
    """A command, run without a shell; its standard output is the secret."""

    variable: str
    command: str
    environ: Mapping[str, str]
    timeout_s: float = COMMAND_TIMEOUT_S

    def read(self) -> str:
        """Run it to its end."""
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise SecretSourceError(
                f"{self.variable} is no command: {str(error).lower()}; it is read as a shell reads"
                " words and quotes"
            ) from None
        named = f"{self.variable} runs {words[0]!r}, which"
        try:
            done = subprocess.run(
                words,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SecretSourceError(
                f"{named} did not end within {self.timeout_s:g} s, the bound of"
                " HOOKLINE_SECRET_COMMAND_TIMEOUT_S"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SecretSourceError(f"{named} cannot be run: {reason}") from None
        if done.returncode:
            raise SecretSourceError(
                f"{named} ended with {done.returncode}: {_last_line(done.stderr)}"
            )
        return _text_of(done.stdout, named)


def variables_given(environ: Mapping[str, str], variable: str) -> list[str]:
    """Return which of a secret's variables are set: itself, its file, its command."""
    names = (variable, variable + FILE_SUFFIX, variable + COMMAND_SUFFIX)
    return [name for name in names if environ.get(name, "").strip()]


def source_of(
    environ: Mapping[str, str], variable: str, timeout_s: float = COMMAND_TIMEOUT_S
) -> SecretSource | None:
    """Where a secret comes from that is not in the environment itself; None: it is, or nowhere.

    Raises `SecretSourceError` where more than one source is set.
    """
    given = variables_given(environ, variable)
    if len(given) > 1:
        raise SecretSourceError(f"{' and '.join(given)} are set: set one of them")
    if not given or given == [variable]:
        return None
    text = environ[given[0]].strip()
    if given[0].endswith(FILE_SUFFIX):
        return FileSource(given[0], Path(text))
    return CommandSource(given[0], text, environ, timeout_s)


def _text_of(content: bytes, named: str) -> str:
    if len(content) > MAX_SECRET_BYTES:
        raise SecretSourceError(f"{named} holds more than {MAX_SECRET_BYTES:,} bytes")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise SecretSourceError(f"{named} holds no UTF-8 text") from None
    if not text or "\0" in text:
        raise SecretSourceError(f"{named} holds no text")
    return text


def _last_line(said: bytes) -> str:
    """The end of what a command reported, on one line and printable."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1][-_MAX_SHOWN:] if lines else "it wrote nothing to standard error"
    return "".join(character if character.isprintable() else "?" for character in last)

"""The operating system's resolver, made slow or dead for one node at will.

The node's process is the real one. Only `getaddrinfo` is put in front of: by a `sitecustomize` that
Python loads before anything of ours, and that looks into a file for what to do.
"""

from __future__ import annotations

import os
import pathlib
import sys

HOST = "receiver.test"
"""A name that leads to this machine, as long as the resolver works."""

_SITECUSTOMIZE = """
import os, pathlib, socket, time

mode, genuine = pathlib.Path(os.environ["FAULTY_RESOLVER"]), socket.getaddrinfo

def getaddrinfo(host, *args, **kwargs):
    is_check = host.endswith(b".test.")
    if host != b"receiver.test" and not is_check:
        return genuine(host, *args, **kwargs)
    if not is_check:
        with mode.with_name("asked").open("a") as asked:
            asked.write(f"{os.getpid()}\\n")
    while mode.read_text() == "slow":
        time.sleep(0.01)
    if mode.read_text() == "down":
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    if is_check:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return genuine("127.0.0.1", *args, **kwargs)

socket.getaddrinfo = getaddrinfo
"""


class FaultyResolver:
    """The answer to lookups of `HOST` by nodes with its environment."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory / "resolver"
        self._directory.mkdir()
        self._mode = self._directory / "mode"
        (self._directory / "asked").touch()
        (self._directory / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        self.works()

    @property
    def environment(self) -> dict[str, str]:
        """What a node is started with."""
        path = os.pathsep.join([str(self._directory), *sys.path])
        return {"PYTHONPATH": path, "FAULTY_RESOLVER": str(self._mode)}

    def works(self) -> None:
        """Answer at once."""
        self._set("")

    def hangs(self) -> None:
        """Answer nothing until it works again."""
        self._set("slow")

    def is_down(self) -> None:
        """Answer with a temporary failure."""
        self._set("down")

    def askers(self) -> list[int]:
        """The processes that asked so far, once for each time."""
        return [int(line) for line in (self._directory / "asked").read_text().split()]

    def _set(self, mode: str) -> None:
        draft = self._mode.with_name("draft")
        draft.write_text(mode)
        draft.rename(self._mode)

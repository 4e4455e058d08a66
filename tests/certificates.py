"""An authority of our own, and the PEM files that it gives to servers and clients of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import trustme


class Authority:
    """Signs certificates, and writes them into a directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.file = directory / f"{name}.pem"
        """Its own certificate."""
        self._authority.cert_pem.write_to_path(str(self.file))

    @property
    def pem(self) -> bytes:
        return self._authority.cert_pem.bytes()

    def issue(self, name: str, *identities: str) -> tuple[Path, Path]:
        """A certificate and its key, `NAME.pem` and `NAME.key`; written over what was there.

        Each is exchanged as a whole, the key first: between the two they do not fit.
        """
        leaf = self._authority.issue_cert(*identities)
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        for path, content in ((key, leaf.private_key_pem.bytes()), (certificate, chain)):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            os.replace(fresh, path)  # noqa: PTH105 - atomically, and said so
        return certificate, key

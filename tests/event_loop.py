"""The event loop of the tests: production's, strict about what is left open."""

import warnings

import uvloop


class StrictLoop(uvloop.Loop):
    """Closing it fails the test that left a connection or a server open.

    uvloop warns of each open handle while it closes it. Were that warning an error at once, as all
    are here, the handle would stay open, and closing the loop would wait for it for ever.
    """

    def close(self) -> None:
        """Close everything first, then warn."""
        with warnings.catch_warnings(record=True) as left_open:
            warnings.simplefilter("always")
            super().close()
        for warning in left_open:
            warnings.warn(warning.message, stacklevel=1)

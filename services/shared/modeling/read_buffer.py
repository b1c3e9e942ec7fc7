"""Memory that files are read into, kept from file to file: fresh pages cost more than the reading itself."""

from typing import Final

_MOST_KEPT_BYTES: Final = 64 * 1024**2


class ReadBuffer:
    """One reader at a time. What was read is gone with the next `take`."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def take(self, num_bytes: int) -> bytearray:
        """At least so many bytes, of any content."""
        if num_bytes <= len(self._kept):
            return self._kept
        # A new one rather than a longer one: somebody may still look at the old.
        taken = bytearray(num_bytes)
        if num_bytes <= _MOST_KEPT_BYTES:
            self._kept = taken
        return taken

"""Memory that the process under test shares with the one that watches it: which input is running, how others ended."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

_HEAD = struct.Struct("<QQQ")
"""How many have begun, the length of the latest, whether it is running."""
_COUNT = struct.Struct("<Q")
_MOST_ENDS = 64
_DATA_AT = _HEAD.size + _MOST_ENDS * _COUNT.size
_SIZE = 2**22


class Watched:
    """A file that both sides map; it outlives a crash of either.

    Args:
        path: the file; made where there is none.
        ends: the names of what is counted, the same on both sides.
    """

    def __init__(self, path: Path, ends: Sequence[str]) -> None:
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._ends = {name: _HEAD.size + i * _COUNT.size for i, name in enumerate(ends)}

    def begin(self, data: bytes) -> None:
        """An input is about to run; of one that does not fit the start is kept."""
        kept = data[: _SIZE - _DATA_AT]
        self._memory[_DATA_AT : _DATA_AT + len(kept)] = kept
        _HEAD.pack_into(self._memory, 0, self.begun + 1, len(kept), 1)

    def end(self, how: str) -> None:
        """It ended, in one of the ways that are counted."""
        _HEAD.pack_into(self._memory, 0, *_HEAD.unpack_from(self._memory, 0)[:2], 0)
        at = self._ends[how]
        _COUNT.pack_into(self._memory, at, _COUNT.unpack_from(self._memory, at)[0] + 1)

    @property
    def begun(self) -> int:
        """How many inputs have begun."""
        return int(_HEAD.unpack_from(self._memory, 0)[0])

    @property
    def running(self) -> bool:
        """Whether the latest has not ended."""
        return bool(_HEAD.unpack_from(self._memory, 0)[2])

    @property
    def data(self) -> bytes:
        """The latest input."""
        length = _HEAD.unpack_from(self._memory, 0)[1]
        return self._memory[_DATA_AT : _DATA_AT + length]

    @property
    def counts(self) -> dict[str, int]:
        """How many inputs ended in which way."""
        found = {name: _COUNT.unpack_from(self._memory, at)[0] for name, at in self._ends.items()}
        return {name: count for name, count in found.items() if count}

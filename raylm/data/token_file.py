"""File of token ids that is written in parts, without holding them in memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt


class TokenFileWriter:
    """Writer of a one-dimensional `.npy` file whose length is not known in advance. Used as a context."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        self.num_tokens = 0
        """Number of tokens written so far."""
        self._write_header()

    def _write_header(self) -> None:
        """Write the header, which NumPy pads so that a larger number fits into the same bytes."""
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.num_tokens,)}
        np.lib.format.write_array_header_1_0(self._file, description)

    def append(self, ids: list[int]) -> None:
        """Write token ids behind those written so far."""
        self._file.write(np.array(ids, dtype=self._dtype).tobytes())
        self.num_tokens += len(ids)

    def __enter__(self) -> TokenFileWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if exc is None:
                self._file.seek(0)
                self._write_header()

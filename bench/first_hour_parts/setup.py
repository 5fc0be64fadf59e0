"""Device and sizes of the measurements: cells, models with random weights, batches of real text, and timing.

B is the batch, T the context length.
"""

from __future__ import annotations

import functools
import gc
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raylm.config.catalog import MODELS, ModelShape
from raylm.data.corpus import Corpus, TokenSplit, Windows

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_SHAPE = ModelShape(num_layers=2, hidden_size=64, num_heads=2, vocab_size=512, max_positions=64)
TINY_CONTEXT_LENGTH, TINY_BATCH_SIZE = 32, 4


class NotMeasuredError(Exception):
    """Measurement that this device, or an installed package, does not have. The message says what is missing."""


@dataclass(frozen=True)
class Cell:
    """A model, the length of its windows and their number in a batch."""

    model: str
    shape: ModelShape
    batch_size: int
    context_length: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens predicted in a batch."""
        return self.batch_size * (self.context_length - 1)


@dataclass
class Setup:
    """Device of the measurements, and whether they are to be small."""

    device: str
    """`cpu` or `cuda`."""
    tiny: bool

    @functools.cached_property
    def is_simulated(self) -> bool:
        """True on a stand-in for a GPU, which computes nothing: its losses and times are not those of a card."""
        return self.device == "cuda" and torch.ones(4, device="cuda").sum().item() != 4.0

    def prepare(self) -> None:
        """Set up this process: no attention by cuDNN on a stand-in, which does not have it."""
        if self.is_simulated:
            torch.backends.cuda.enable_cudnn_sdp(False)

    @property
    def precision(self) -> str:
        """Precision of training: bfloat16 on a GPU."""
        return "bfloat16" if self.device == "cuda" else "float32"

    def pick(self, full: Any, tiny: Any) -> Any:
        """Return one of two sizes."""
        return tiny if self.tiny else full

    def cell(self, text: str) -> Cell:
        """Return the cell written as `MODEL BATCHxCONTEXT`, or a tiny one."""
        model, sizes = text.split(" ")
        batch_size, context_length = map(int, sizes.split("x"))
        if self.tiny:
            return Cell(model, TINY_SHAPE, min(batch_size, TINY_BATCH_SIZE), TINY_CONTEXT_LENGTH)
        return Cell(model, MODELS[model].shape, batch_size, context_length)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Free the GPU memory that an earlier measurement has left, and start to measure its peak."""
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> dict[str, float]:
        """Return the peak of the bytes handed out by torch's allocator, and of those it held, since `clear`."""
        if self.device != "cuda":
            return {}
        return {
            "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
            "held GiB": torch.cuda.max_memory_reserved() / 2**30,
        }

    def time(self, run: Callable[[], object], *, warmup: int = 3, seconds: float = 3.0, least: int = 5) -> Timing:
        """Return the median time of a function over five rounds, of as many calls as fit into the seconds."""
        warmup, seconds, least = self.pick((warmup, seconds, least), (1, 0.0, 1))
        for _ in range(warmup):
            run()
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        calls = max(least, min(1000, int(seconds / 5 / max(time.perf_counter() - started, 1e-6))))
        walls, hosts = [], []
        for _ in range(self.pick(5, 1)):
            started, host_started = time.perf_counter(), time.process_time()
            for _ in range(calls):
                run()
            hosts.append((time.process_time() - host_started) / calls)
            self.synchronize()
            walls.append((time.perf_counter() - started) / calls)
        return Timing(statistics.median(walls), statistics.median(hosts))


@dataclass(frozen=True)
class Timing:
    """Times of a function, in seconds."""

    wall: float
    """A call, until the device is done."""
    host: float
    """Processor time of this process in a call, without the wait at the end; with the wait for a full queue."""


# ---- text -----------------------------------------------------------------------------------------------------------


@functools.cache
def read_pieces() -> tuple[list[str], str]:
    """Return the documentation of this repository as words, white space and punctuation, and as a text."""
    files = [*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return re.findall(r"\w+|\s+|[^\w\s]", text), text


@functools.cache
def read_tokens(vocab_size: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return that text with the most frequent piece as token 1; rare ones share tokens of a small vocabulary."""
    pieces, _ = read_pieces()
    ranks = {piece: rank for rank, (piece, _) in enumerate(Counter(pieces).most_common(), start=1)}
    return np.array([1 + (ranks[piece] - 1) % (vocab_size - 1) for piece in pieces], dtype=np.uint16)


def build_corpus(cell: Cell, steps: int) -> Corpus:
    """Return the text as a corpus of a number of batches, repeated where it is too short, and a few windows beside."""
    tokens = read_tokens(cell.shape.vocab_size)
    train = np.resize(tokens[1000:], steps * cell.num_tokens)
    validation = np.resize(tokens[:1000], 2 * (cell.context_length - 1))
    splits = [TokenSplit(split, num_words=len(split) // 2, num_bytes=4 * len(split)) for split in (train, validation)]
    return Corpus("docs", "-", "-", splits[0], splits[1], 0, cell.shape.vocab_size, {})


def build_batches(cell: Cell, number: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """Return inputs and targets (B, T) of the first windows of the text."""
    windows = Windows(build_corpus(cell, number).train.tokens, cell.context_length, 0)
    batches = (
        windows.get_batch(range(start, start + cell.batch_size)) for start in range(0, len(windows), cell.batch_size)
    )
    return [(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)) for inputs, targets in batches]


# ---- models ---------------------------------------------------------------------------------------------------------


def build_config(cell: Cell, dropout: float) -> GPT2Config:
    """Return transformers' configuration of a cell's model."""
    from transformers import GPT2Config

    shape = cell.shape
    rates = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    sizes = {"n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2Config(vocab_size=shape.vocab_size, n_positions=shape.max_positions, **sizes, **rates, **special)


def build_model(cell: Cell, dropout: float, device: str) -> GPT2LMHeadModel:
    """Return a model with random weights, made on a device: those of a GPU are others than those of a CPU."""
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    with torch.device(device):
        return GPT2LMHeadModel(build_config(cell, dropout)).train()

"""Parts of the first hour on a GPU and their cases, in the order in which they run, with planned times. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_PART_SECONDS = 480
"""Limit of a part's planned time: a shared machine often ends a command after ten minutes."""
MAX_TOTAL_SECONDS = 3600
"""Limit of the planned time of all parts."""


@dataclass(frozen=True)
class Case:
    """One measurement."""

    name: str
    seconds: int
    """Planned time on an H100, in seconds, with building the model and warming up."""
    function: str
    """Function that measures, as `module.function` of this package."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments beside the setup."""


@dataclass(frozen=True)
class Part:
    """Cases that answer one question; each has its table."""

    name: str
    title: str
    cases: tuple[Case, ...]

    @property
    def seconds(self) -> int:
        """Planned time of all cases, in seconds."""
        return sum(case.seconds for case in self.cases)


def _cells(function: str, seconds: Mapping[str, int], **arguments: Any) -> list[Case]:
    """Return a case for each cell, written `MODEL BATCHxCONTEXT`."""
    words = [
        value if isinstance(value, str) else f"{key.replace('_', ' ')} {value}" for key, value in arguments.items()
    ]
    suffix = "".join(f", {word}" for word in words)
    return [Case(cell + suffix, time, function, {"cell": cell, **arguments}) for cell, time in seconds.items()]


SMALL = {"gpt2 8x256": 8, "gpt2 8x1024": 10, "gpt2 32x1024": 12}
LARGER = {"gpt2-medium 16x1024": 20, "gpt2-large 16x1024": 30, "gpt2-xl 8x1024": 30}
"""Cells that transformers trains in 80 GB too: gpt2 at batch 64 and gpt2-xl at batch 16 run out of memory there."""
ATTENTIONS = itertools.product(("bfloat16", "float32"), (0.0, 0.1))
WHOLE_BATCHES = {
    "gpt2 8x256": 10,
    "gpt2 8x1024": 10,
    "gpt2 64x1024": 12,
    "gpt2-medium 8x256": 12,
    "gpt2-medium 8x1024": 12,
    "gpt2-large 8x512": 18,
    "gpt2-large 8x1024": 18,
    "gpt2-xl 8x256": 30,
    "gpt2-xl 8x512": 30,
    "gpt2-xl 8x1024": 30,
}
OTHER_MEMORY = (
    Case("gpt2 8x1024, recomputed", 12, "trials.peak", {"cell": "gpt2 8x1024", "micro": 8, "recompute": True}),
    Case("gpt2 16x1024 in 8", 12, "trials.peak", {"cell": "gpt2 16x1024", "micro": 8}),
    Case("gpt2 8x1024, float32", 12, "trials.peak", {"cell": "gpt2 8x1024", "precision": "float32"}),
    Case("gpt2 8x1024, dropout 0.1", 12, "trials.peak", {"cell": "gpt2 8x1024", "dropout": 0.1}),
    Case(
        "gpt2-large 8x1024, recomputed", 20, "trials.peak", {"cell": "gpt2-large 8x1024", "micro": 8, "recompute": True}
    ),
    Case("gpt2-xl 8x1024, recomputed", 35, "trials.peak", {"cell": "gpt2-xl 8x1024", "micro": 8, "recompute": True}),
    Case("gpt2-xl 16x1024 in 8", 35, "trials.peak", {"cell": "gpt2-xl 16x1024", "micro": 8}),
    Case("gpt2-xl 8x1024, adamw", 35, "trials.peak", {"cell": "gpt2-xl 8x1024", "optimizer": "adamw"}),
)

PARTS: tuple[Part, ...] = (
    Part(
        "card",
        "The card: context, bandwidth, matrix products, launches",
        (
            Case("memory of the context", 10, "card.context_memory"),
            Case("copy of 1 GiB", 5, "card.copy_bandwidth"),
            *(
                Case(f"product in {dtype}", 10, "card.product_rate", {"dtype": dtype})
                for dtype in ("bfloat16", "float32")
            ),
            Case("launches of small kernels", 5, "card.launch_times"),
        ),
    ),
    Part(
        "numbers",
        "The loss in bfloat16 and the optimizer against float64 and a CPU",
        (
            *(
                Case(f"head and loss, logits near {mean:g}", 15, "numbers.head_errors", {"mean": mean})
                for mean in (0.0, -112.0)
            ),
            Case("Adafactor, 20 steps against a CPU", 30, "numbers.adafactor_difference"),
        ),
    ),
    Part(
        "losses",
        "Losses of 20 steps of gpt2 at 2 x 256 on real text, from the same weights",
        (
            Case("raylm, CPU, float32", 75, "numbers.losses", {"tool": "raylm", "precision": "float32", "on": "cpu"}),
            Case("raylm, float32", 15, "numbers.losses", {"tool": "raylm", "precision": "float32"}),
            Case("raylm, bfloat16", 15, "numbers.losses", {"tool": "raylm", "precision": "bfloat16"}),
            Case(
                "transformers, float32, eager", 20, "numbers.losses", {"tool": "transformers", "precision": "float32"}
            ),
            Case(
                "transformers, bfloat16, SDPA", 20, "numbers.losses", {"tool": "transformers", "precision": "bfloat16"}
            ),
        ),
    ),
    Part(
        "step",
        "A training step: forward and backward pass, clipping, Adafactor",
        (
            *_cells("steps.measure", SMALL, tool="raylm"),
            *_cells("steps.measure", LARGER, tool="raylm"),
            *_cells("steps.measure", {"gpt2 64x1024": 15, "gpt2-xl 16x1024": 40}, tool="raylm"),
            *_cells("steps.measure", SMALL, tool="transformers"),
            *_cells("steps.measure", LARGER, tool="transformers"),
            *_cells("steps.measure", {"gpt2 8x256": 8}, tool="raylm", dropout=0.1),
        ),
    ),
    Part(
        "head",
        "The head and the loss, forward and backward",
        tuple(
            Case(f"{positions:,} x {width}", 50, "heads.race_losses", {"positions": positions, "width": width})
            for positions, width in ((8192, 768), (65536, 768), (16384, 1600))
        ),
    ),
    Part("memory", "Peak memory against the plan", (*_cells("trials.peak", WHOLE_BATCHES), *OTHER_MEMORY)),
    Part(
        "graphs",
        "Trials whose steps are CUDA graphs, or launched kernel by kernel",
        (
            *_cells("trials.graph", {"gpt2 8x256": 40, "gpt2 64x1024": 50, "gpt2-xl 16x1024": 130}),
            *_cells("trials.graph", {"gpt2 8x256": 40}, dropout=0.1),
            *_cells("trials.graph", {"gpt2 8x256": 120}, tool="compiled"),
        ),
    ),
    Part(
        "compile",
        "Blocks compiled",
        (*_cells("steps.measure", {"gpt2 8x256": 80, "gpt2 64x1024": 90, "gpt2-xl 16x1024": 130}, tool="compiled"),),
    ),
    Part("optimizer", "A step of the optimizer alone", (*_cells("optimizers.measure", {"gpt2": 45, "gpt2-xl": 75}),)),
    Part(
        "trial",
        "Whole trials: tokens per second against the plan",
        (
            *_cells(
                "trials.throughput",
                {"gpt2 8x256": 20, "gpt2 64x1024": 40, "gpt2-medium 16x1024": 40, "gpt2-xl 16x1024": 80},
            ),
        ),
    ),
    Part(
        "sharing",
        "Two trials at half a GPU each against one alone",
        (*_cells("sharing.measure", {"gpt2 8x256": 60, "gpt2 8x1024": 60}),),
    ),
    Part(
        "out of memory",
        "Trials on a part of the card's memory",
        (
            *_cells("trials.out_of_memory", {"gpt2 8x1024": 40}, enough_for=4),
            *_cells("trials.out_of_memory", {"gpt2 8x1024": 40}, enough_for=0),
        ),
    ),
    Part(
        "checkpoint",
        "A checkpoint: saved, loaded, resumed from",
        (*_cells("trials.checkpoint", {"gpt2 8x256": 40, "gpt2-xl 8x256": 150}),),
    ),
    Part(
        "attention",
        "Attention chosen by torch, and the times of all, at 16 x 12 heads x 1,024 x 64",
        tuple(
            Case(f"{dtype}, dropout {dropout:g}", 15, "card.attention", {"dtype": dtype, "dropout": dropout})
            for dtype, dropout in ATTENTIONS
        ),
    ),
    Part(
        "profile",
        "GPU time of a step by kernel",
        (*_cells("steps.profile", {"gpt2 8x256": 25, "gpt2 64x1024": 30, "gpt2-xl 16x1024": 50}),),
    ),
    Part("ray", "Two trials at half a GPU each by `raylm run`", (Case("gpt2-nano", 120, "sharing.through_ray"),)),
)


def find_part(name: str) -> Part:
    """Return the part of a name.

    Raises:
        SystemExit: if there is none.
    """
    for part in PARTS:
        if part.name == name:
            return part
    raise SystemExit(f"--part: got {name!r}; expected one of {', '.join(part.name for part in PARTS)}")


def describe() -> str:
    """Return a line for each part with its number of cases and planned time, and the total."""
    lines = [f"{part.name:<14} {len(part.cases):>3} cases {part.seconds / 60:5.1f} min  {part.title}" for part in PARTS]
    total = sum(part.seconds for part in PARTS)
    return "\n".join([*lines, f"{'all':<14} {sum(len(part.cases) for part in PARTS):>3} cases {total / 60:5.1f} min"])

"""Samples of best epochs: transformers' own for the same seed, each on its own, within what a model knows; shown."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from rich.console import Console as RichConsole
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylm import UserError
from raylm.monitor.console import Console
from raylm.report.analysis import Results
from raylm.training.generate import generate_samples

PROMPT = "The while statement"
CONTEXT = 32
"""That the trial was trained at, from random weights."""


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_sample_is_what_transformers_gives_for_the_seed(trained_sweep: Results, temperature: float) -> None:
    row = trained_sweep.best()
    assert row.best_checkpoint is not None
    (sample,) = generate_samples(trained_sweep, [row], PROMPT, max_new_tokens=8, temperature=temperature, seed=3)
    folder = trained_sweep.storage.uri_of(row.best_checkpoint.folder)
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = words(PROMPT, return_tensors="pt")
    torch.manual_seed(3)
    chosen = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    expected = model.generate(**inputs, max_new_tokens=8, pad_token_id=words.eos_token_id, use_cache=False, **chosen)
    assert sample.row is row and sample.full_text == words.decode(expected[0], skip_special_tokens=True)


def test_a_sample_follows_from_the_seed_alone(trained_sweep: Results) -> None:
    row = trained_sweep.best()

    def texts(times: int, seed: int) -> list[str]:
        return [
            sample.full_text
            for sample in generate_samples(trained_sweep, [row] * times, PROMPT, seed=seed, max_new_tokens=12)
        ]

    assert texts(2, 1) == texts(1, 1) * 2 != texts(1, 2) * 2


def test_a_text_ends_where_the_model_knows_no_more_positions(trained_sweep: Results) -> None:
    row = trained_sweep.best()
    assert row.best_checkpoint is not None and row.config.context_length == CONTEXT
    words = AutoTokenizer.from_pretrained(trained_sweep.storage.uri_of(row.best_checkpoint.folder))
    (sample,) = generate_samples(trained_sweep, [row], "", max_new_tokens=500, temperature=0)
    assert 0 < len(words(sample.full_text)["input_ids"]) < CONTEXT
    with pytest.raises(UserError, match=rf"{row.config.run_name} takes 32, with at least one to write"):
        list(generate_samples(trained_sweep, [row], "while " * CONTEXT))


@pytest.mark.parametrize(("width", "lines"), [(100, 3), (60, 8)], ids=["side by side", "one after another"])
def test_samples_on_a_terminal(width: int, lines: int) -> None:
    out = io.StringIO()
    terminal = RichConsole(file=out, width=width, force_terminal=True, no_color=True, highlight=False)
    screen = Console(rich_console=terminal)
    screen.print_samples(["first", "second"], iter(["one\n[b]two[/b]", "a\x1b]0;title\x07\nb"]))
    shown = out.getvalue()
    assert len(shown.splitlines()) == lines
    assert "[b]two[/b]" in shown and "\x1b]0" not in shown and "\\x1b]0;title" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--run", "no-such-run"], "has no run 'no-such-run'"),
        (["--run", "{missing}"], "(missing) has no evaluated epoch yet"),
    ],
)
def test_a_row_that_cannot_be_sampled_is_told_at_once(trained_sweep: Results, options: list[str], words: str) -> None:
    given = [option.format(missing=trained_sweep.rows[1].config.run_name) for option in options]
    command = [sys.executable, "-c", "from raylm.cli.app import app; app()", "generate", trained_sweep.storage.uri]
    done = subprocess.run([*command, "--prompt", "a", *given], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and words in done.stderr and "loading" not in done.stdout

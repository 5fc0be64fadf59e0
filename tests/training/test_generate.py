"""Text samples: equal to transformers' for the same seed, independent of each other, within the trained context."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console as RichConsole
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from raylm import UserError
from raylm.cli.app import app
from raylm.monitor.console import Console
from raylm.report.analysis import Results
from raylm.training.generate import generate_samples

PROMPT = "The while statement"
CONTEXT = 32
"""Context length of the trained trial, whose weights started at random."""


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_sample_equals_transformers_for_the_same_seed(trained_sweep: Results, temperature: float) -> None:
    row = trained_sweep.best()
    assert row.best_checkpoint is not None
    (sample,) = generate_samples(trained_sweep, [row], PROMPT, max_new_tokens=8, temperature=temperature, seed=3)
    folder = trained_sweep.storage.uri_of(row.best_checkpoint.folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    torch.manual_seed(3)
    options = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    options |= {"max_new_tokens": 8, "pad_token_id": tokenizer.eos_token_id, "use_cache": False}
    expected = model.generate(**inputs, **options)
    assert sample.row is row and sample.full_text == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_sample_depends_on_the_seed_only(trained_sweep: Results) -> None:
    row = trained_sweep.best()

    def generate(num_rows: int, seed: int) -> list[str]:
        samples = generate_samples(trained_sweep, [row] * num_rows, PROMPT, seed=seed, max_new_tokens=12)
        return [sample.full_text for sample in samples]

    assert generate(2, seed=1) == generate(1, seed=1) * 2 != generate(1, seed=2) * 2


def test_sample_ends_at_the_trained_context_length(trained_sweep: Results) -> None:
    row = trained_sweep.best()
    assert row.best_checkpoint is not None and row.config.context_length == CONTEXT
    tokenizer = AutoTokenizer.from_pretrained(trained_sweep.storage.uri_of(row.best_checkpoint.folder))
    (sample,) = generate_samples(trained_sweep, [row], "", max_new_tokens=500, temperature=0)
    assert 0 < len(tokenizer(sample.full_text)["input_ids"]) < CONTEXT
    with pytest.raises(UserError, match=rf"{row.config.run_name} takes at most 32 tokens, one of them to generate"):
        list(generate_samples(trained_sweep, [row], "while " * CONTEXT))


@pytest.mark.parametrize(("width", "lines"), [(100, 3), (60, 8)], ids=["side by side", "one after another"])
def test_samples_on_a_terminal(width: int, lines: int) -> None:
    out = io.StringIO()
    terminal = RichConsole(file=out, width=width, force_terminal=True, no_color=True, highlight=False)
    console = Console(rich_console=terminal)
    console.print_samples(["first", "second"], iter(["one\n[b]two[/b]", "a\x1b]0;title\x07\nb"]))
    shown = out.getvalue()
    assert len(shown.splitlines()) == lines
    assert "[b]two[/b]" in shown and "\x1b]0" not in shown and "\\x1b]0;title" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "no-such-run"], "has no run 'no-such-run'"),
        (["--run", "{pending}"], "has no evaluated epoch yet"),
    ],
)
def test_row_without_a_checkpoint_is_refused_before_loading(
    trained_sweep: Results, options: list[str], message: str
) -> None:
    arguments = [option.format(pending=trained_sweep.rows[1].config.run_name) for option in options]
    done = CliRunner().invoke(app, ["generate", trained_sweep.storage.uri, "--prompt", "a", *arguments])
    assert done.exit_code == 2 and message in done.stderr and "loading" not in done.stdout

"""Costs of a sweep's trials together: the lines below a plan, those before a launch, and ways to make it shorter."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from raylm.config.sweep import Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.planning import throughput
from raylm.planning.devices import find_device, list_gpu_names
from raylm.planning.plan import TrialPlan, describe_excess, plan_trial, plan_trials, representative_trials
from raylm.planning.throughput import Placement
from raylm.units import GIB, format_duration, pluralize

LEGEND = (
    "micro: windows at a time, r with recomputed activations; GiB: peak memory of the device; disk: GiB",
    "~ estimated; ? not known before model and dataset are fetched",
)
UNKNOWN = "is not known yet"
"""End of a line about costs that depend on a dataset or a model that is not on this machine yet."""
DAY_SECONDS, SHORT_SECONDS = 86_400, 4 * 3600
"""Time of training above which a launch says what would make it shorter, and the time that it aims at."""
SUGGESTED_GPU = "rtx-4090"
"""GPU whose time is given to those who would train on a CPU for days."""
TOKEN_LIMITS = [digit * 10**power for power in range(9, 3, -1) for digit in (5, 2, 1)]
"""Values of `max_train_tokens` to suggest, the largest first."""


def summary_lines(
    sweep: Sweep,
    plans: Sequence[TrialPlan | None],
    remaining: Sequence[TrialPlan | None],
    placement: Placement | None,
    price_per_hour: float | None,
) -> list[str]:
    """Return the lines below the table of a plan.

    Args:
        sweep: the sweep.
        plans: plans of all trials; of a search, of those suggested so far.
        remaining: plans of unfinished trials.
        placement: devices of a trial; None if they are unknown.
        price_per_hour: price of a GPU, or of a machine without one, per hour.
    """
    lines = []
    if plans:
        lines.append(f"{pluralize(len(plans), 'trial')}, {len(remaining)} remaining: {_format_totals(remaining)}")
    if sweep.num_samples is not None:
        finished = f"{len(plans) - len(remaining)} finished"
        trials = pluralize(sweep.num_samples, "trial")
        lines.append(f"search of {trials}, {finished}; each is suggested from earlier results")
    if placement is None:
        return [*lines, "no known GPU for these trials in this machine: --gpu NAME shows memory and time on one"]
    if sweep.num_samples is not None:
        representative = plan_trials(representative_trials(sweep), placement)
        lines.append(_format_search_time(representative, sweep, placement, price_per_hour, sweep.num_samples))
    elif remaining:
        lines.append(_format_time(remaining, placement, price_per_hour))
    return [*lines, *describe_excess(plans), f"on {placement}", *(LEGEND if plans else [])]


def _format_totals(plans: Sequence[TrialPlan | None]) -> str:
    """Return the tokens, steps, FLOPs and disk space of these trials together."""
    known = [plan for plan in plans if plan is not None]
    if plans and not known:
        return f"the amount of work {UNKNOWN}"
    about = "" if len(known) == len(plans) and all(plan.is_exact for plan in known) else "about "
    text = f"{about}{sum(plan.tokens for plan in known):,} tokens in {sum(plan.steps for plan in known):,} steps"
    flops = _sum_or_none(plans, lambda plan: plan.flops)
    disk_bytes = _sum_or_none(plans, lambda plan: plan.checkpoint_bytes)
    if flops is not None and disk_bytes is not None:
        text += f", {flops / 1e15:,.3g} PFLOPs, {disk_bytes / GIB:,.1f} GiB on disk"
    return text


def _format_time(plans: Sequence[TrialPlan | None], placement: Placement, price_per_hour: float | None) -> str:
    """Return the time of these trials together, their device-hours and the price."""
    seconds = _sum_or_none(plans, lambda plan: plan.amortized_seconds)
    device_seconds = _sum_or_none(plans, lambda plan: plan.device_seconds)
    if seconds is None or device_seconds is None:
        return f"the time {UNKNOWN}"
    longest = max((plan.seconds or 0.0 for plan in plans if plan), default=0.0)
    text = f"~{format_duration(max(longest, seconds))} of training"
    concurrent = {plan.placement.concurrent_trials for plan in plans if plan and plan.placement}
    if max(concurrent) > 1:
        text += f", {' to '.join(map(str, sorted({min(concurrent), max(concurrent)})))} at a time"
    return f"{text}; {_format_device_hours(device_seconds, placement, price_per_hour)}"


def _format_search_time(
    plans: Sequence[TrialPlan | None], sweep: Sweep, placement: Placement, price_per_hour: float | None, samples: int
) -> str:
    """Return the time of a search: the range of its representative trials, and their mean times its samples."""
    known = [plan for plan in plans if plan is not None and plan.seconds is not None and plan.placement is not None]
    if not known or len(known) < len(plans):
        return f"the time of its trials {UNKNOWN}"
    times = [plan.seconds or 0.0 for plan in known]
    shortest, longest = format_duration(min(times)), format_duration(max(times))
    each = f"~{shortest}" if shortest == longest else f"~{shortest} to ~{longest}"
    concurrent = [min(plan.placement.concurrent_trials, samples) for plan in known if plan.placement]
    total = statistics.fmean(time / number for time, number in zip(times, concurrent, strict=True)) * samples
    device_seconds = statistics.fmean(plan.device_seconds or 0.0 for plan in known) * samples
    text = (
        f"training takes {each} per trial, ~{format_duration(total)} for {pluralize(samples, 'trial')} of mean length"
    )
    text += f"; {_format_device_hours(device_seconds, placement, price_per_hour)}"
    return text + ("; less if trials are stopped early" if sweep.scheduler is not None else "")


def _format_device_hours(device_seconds: float, placement: Placement, price_per_hour: float | None) -> str:
    """Return GPU-hours or machine-hours, and their price."""
    hours = device_seconds / 3600
    unit = "GPU-hours" if placement.device.type == "cuda" else "machine-hours"
    cost = "" if price_per_hour is None else f", ~{hours * price_per_hour:,.2f} at {price_per_hour:,.2f} per hour"
    return f"~{hours:,.{2 if hours < 10 else 0}f} {unit}{cost}"


def _sum_or_none(plans: Sequence[TrialPlan | None], key: Callable[[TrialPlan], float | None]) -> float | None:
    """Return the sum over all plans, or None if any value is unknown."""
    values = [key(plan) if plan is not None else None for plan in plans]
    return None if None in values else sum(value for value in values if value is not None)


# ---- before a launch ----------------------------------------------------------------------------------------------


def describe_launch(sweep: Sweep, trials: Sequence[TrialConfig], num_remaining: int, *, is_here: bool) -> list[str]:
    """Return lines about the costs of a launch: work, disk, memory and time, and for a long one what shortens it.

    Args:
        sweep: the sweep.
        trials: unfinished trials; of a search, those suggested so far.
        num_remaining: number of trials that the launch runs.
        is_here: False if the trials run on a cluster, whose time and memory are not known before it is reached.
    """
    placement = throughput.find_placement(sweep.resources, sweep.precision) if is_here else None
    if sweep.num_samples is not None:
        trials = representative_trials(sweep)
        if not trials:
            return []
    plans = plan_trials(trials, placement)
    work = [] if sweep.num_samples is not None else [_format_totals(plans)]
    peaks = [plan.peak_bytes for plan in plans if plan is not None and plan.peak_bytes is not None]
    memory = [f"up to {max(peaks) / GIB:,.1f} GiB of memory per trial"] if peaks else []
    lines = [f"plan: {', '.join([*work, *memory])}"] if work or memory else []
    if placement is None:
        unknown = [name for name in list_gpu_names() if find_device(name) is None]
        return [*lines, f"plan: time and memory on {unknown[0]} are not known"] if is_here and unknown else lines
    if sweep.num_samples is None:
        time = _format_time(plans, placement, None)
    else:
        time = _format_search_time(plans, sweep, placement, None, num_remaining)
    lines.append(f"plan: {time}; on {placement.device.name}")
    seconds = total_seconds(plans, num_remaining)
    if seconds is not None and seconds > DAY_SECONDS:
        ways = ", or ".join(_list_ways_to_shorten(sweep, trials, num_remaining, placement))
        lines.append(f"plan: more than a day{'; shorter with ' if ways else ''}{ways}")
    return lines


def describe_trials(sweep: Sweep, num_trials: int, num_remaining: int) -> str:
    """Return the numbers of a sweep's trials and of those that remain, as one line."""
    if sweep.num_samples is not None:
        trials = f"{pluralize(sweep.num_samples, 'trial')} by {sweep.search_name}"
    else:
        duplicates = sweep.grid_size - num_trials
        trials = pluralize(num_trials, "trial") + (
            f" ({pluralize(duplicates, 'duplicate')} removed)" if duplicates else ""
        )
    return f"sweep {sweep.name}: {trials}, {num_remaining:,} remaining"


def total_seconds(plans: Sequence[TrialPlan | None], num_trials: int) -> float | None:
    """Return the time of as many trials, of the mean length of these, at least the longest; None if it is unknown."""
    seconds = _sum_or_none(plans, lambda plan: plan.amortized_seconds)
    if seconds is None or not plans:
        return None
    return max(seconds / len(plans) * num_trials, max(plan.seconds or 0.0 for plan in plans if plan))


def _list_ways_to_shorten(
    sweep: Sweep, trials: Sequence[TrialConfig], num_trials: int, placement: Placement
) -> list[str]:
    """Return changes that make a launch much shorter, each with its time."""
    ways = []
    for limit in TOKEN_LIMITS:
        limited = [replace(trial, max_train_tokens=min(limit, trial.max_train_tokens or limit)) for trial in trials]
        seconds = total_seconds(plan_trials(limited, placement), num_trials)
        if seconds is not None and seconds <= SHORT_SECONDS:
            ways.append(f"--set max_train_tokens={limit} for a first look (~{format_duration(seconds)})")
            break
    if placement.device.type == "cpu":
        one_gpu = throughput.find_placement(Resources(), sweep.precision, SUGGESTED_GPU)
        seconds = total_seconds(plan_trials(trials, one_gpu), num_trials)
        if seconds is not None:
            ways.append(f"one {SUGGESTED_GPU} (~{format_duration(seconds)}; `raylm plan FILE --gpu {SUGGESTED_GPU}`)")
    shares: dict[str, float] = {}
    for trial, plan in zip(trials, plan_trials(trials, placement), strict=True):
        shares[trial.model] = shares.get(trial.model, 0.0) + ((plan.device_seconds or 0.0) if plan else 0.0)
    slowest = max(shares, key=lambda model: shares[model])
    if len(shares) > 1 and (share := shares[slowest] / sum(shares.values())) >= 0.5:
        ways.append(f"a smaller model than {slowest}, which takes {100 * share:.0f} % of the time")
    return ways


def format_work(trials: Sequence[TrialConfig], train_tokens: Sequence[int]) -> str:
    """Return the training work of trials as one line.

    Args:
        trials: trials that will run.
        train_tokens: size of each one's train split, in tokens.
    """
    planned = [plan_trial(trial, size) for trial, size in zip(trials, train_tokens, strict=True)]
    tokens, steps = sum(trial.tokens for trial in planned), sum(trial.steps for trial in planned)
    return f"to train on: {tokens:,} tokens in {steps:,} optimizer steps"

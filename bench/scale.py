"""Benchmark commands on a results folder with many rows: seconds, peak memory, and requests to a bucket.

    python bench/scale.py [--rows 100 1000 10000] [--bucket-rows 100 1000 2000] [--one-more]

A sweep of two trials of `gpt2-nano` is run once. Its first row is then multiplied: manifests of their own, hard links
to all other files. A bucket is one of `python -m moto.server` on this machine, which logs its requests; its answers
take no network, so that requests count there, not seconds. `--one-more` also trains one more row of each sweep.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

from pyarrow import fs
from watched import write_dataset

from raylm.config.sweep_file import load_sweep
from raylm.results import folder, manifest, sweep_record
from raylm.results.open_storage import open_storage

SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="{name}", space={{
    "dataset": {dataset!r}, "model": "gpt2-nano", "context_length": 64, "max_train_tokens": 5000,
    "learning_rate": tune.grid_search([number * 1e-6 for number in range(1, {rows} // 10 + 1)]),
    "seed": tune.grid_search(list(range(10))),
}}, resources=Resources(cpus=1))
"""
BUCKET, PORT = "scale", 5731
SERVER = f"http://127.0.0.1:{PORT}"
SERVER_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL": SERVER,
}


def write_sweep_file(parent: Path, rows: int) -> Path:
    """Write the file of a sweep with so many trials, a multiple of ten, and return it."""
    file = parent / f"scale_{rows}.py"
    file.write_text(SWEEP.format(name=f"scale-{rows}", dataset=str(parent / "text"), rows=rows))
    return file


def multiply_row(parent: Path, rows: int) -> Path:
    """Return the file of a sweep with so many finished rows, made from the first row of the sweep of ten trials."""
    template = folder.find_results(
        load_sweep(str(write_sweep_file(parent, 10))), open_storage(f"{parent}/runs/scale-10")
    )
    source = next(row for row in template.rows if row.best_checkpoint)
    assert source.best_checkpoint is not None and template.record is not None
    file = write_sweep_file(parent, rows)
    sweep, results = load_sweep(str(file)), parent / "runs" / f"scale-{rows}"
    text = Path(template.storage.uri, source.best_checkpoint.folder, manifest.MANIFEST_FILE).read_text()
    source_folder = Path(template.storage.uri, "launch-001", source.config.run_name)
    for trial in sweep.trials():
        target = results / "launch-001" / trial.run_name
        if target.exists():
            continue
        for path in sorted(source_folder.rglob("*")):
            copy = target / path.relative_to(source_folder)
            if path.is_dir():
                copy.mkdir(parents=True)
            elif path.name == manifest.MANIFEST_FILE:
                content = {**json.loads(text), "trial_id": trial.id, "config": trial.as_record()}
                copy.write_text(json.dumps(content, indent=2))
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, copy)
    record = replace(template.record, name=sweep.name, trials=sweep.trials())
    sweep_record.write(open_storage(str(results)), record)
    return file


def time_command(arguments: list[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Return the seconds of a command of raylm, and its peak memory in MiB.

    Raises:
        SystemExit: if it fails.
    """
    command, start = [sys.executable, "-c", "from raylm.cli.app import app; app()", *arguments], time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **env})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}\n{output.read()}")
    return seconds, usage.ru_maxrss / 2**10


def list_commands(file: Path, storage: str, rows: int) -> dict[str, list[str]]:
    """Return the arguments of the benchmarked commands by name."""
    results = f"{storage}/scale-{rows}"
    return {
        "run (finished)": ["run", str(file), "--storage", storage],
        "plan": ["plan", str(file), "--gpu", "rtx-4090"],
        "report": ["report", results],
        "report --format html": ["report", results, "--format", "html"],
        "status": ["status", results],
        "ls": ["ls", storage],
    }


def _is_answering() -> bool:
    """Return whether the server takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


@contextlib.contextmanager
def serve_bucket(log: Path) -> Iterator[None]:
    """Serve an empty bucket of S3 that logs its requests."""
    command = [sys.executable, "-m", "moto.server", "-p", str(PORT)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            os.environ.update(SERVER_ENVIRONMENT)
            while not _is_answering():
                time.sleep(0.1)
            fs.S3FileSystem(endpoint_override=SERVER, allow_bucket_creation=True).create_dir(BUCKET)
            yield
        finally:
            process.terminate()


def count_requests(log: Path) -> int:
    """Return the number of requests that a server has logged."""
    return len(re.findall(r'"(GET|PUT|POST|HEAD|DELETE) ', log.read_text(errors="replace")))


def measure_folder(parent: Path, rows: int, *, one_more: bool) -> Iterator[dict[str, object]]:
    """Yield the seconds and MiB of each command on a results folder of this disk."""
    file, storage = multiply_row(parent, rows), f"{parent}/runs"
    for name, arguments in list_commands(file, storage, rows).items():
        seconds, mib = time_command(arguments, {})
        yield {"storage": "disk", "rows": rows, "command": name, "seconds": round(seconds, 2), "mib": round(mib)}
    if one_more:
        last = load_sweep(str(file)).trials()[-1]
        shutil.rmtree(f"{storage}/scale-{rows}/launch-001/{last.run_name}")
        seconds, mib = time_command(["run", str(file), "--storage", storage, "--address", "local"], {})
        name = "run (one more row)"
        yield {"storage": "disk", "rows": rows, "command": name, "seconds": round(seconds, 2), "mib": round(mib)}


def measure_bucket(parent: Path, rows: int, log: Path) -> Iterator[dict[str, object]]:
    """Yield the seconds and requests of each command on results in a bucket."""
    file, target = multiply_row(parent, rows), fs.S3FileSystem(endpoint_override=SERVER)
    results = f"{parent}/runs/scale-{rows}"
    fs.copy_files(results, f"{BUCKET}/{rows}/scale-{rows}", destination_filesystem=target)
    for name, arguments in list_commands(file, f"s3://{BUCKET}/{rows}", rows).items():
        before = count_requests(log)
        seconds, _ = time_command(arguments, SERVER_ENVIRONMENT)
        requests = count_requests(log) - before
        yield {"storage": "bucket", "rows": rows, "command": name, "seconds": round(seconds, 2), "requests": requests}


def main() -> None:
    """Print a line of JSON for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[100, 1_000, 10_000])
    parser.add_argument("--bucket-rows", type=int, nargs="*", default=[100, 1_000, 2_000])
    parser.add_argument("--one-more", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        write_dataset(parent / "text", validation=topics["while"])
        arguments = ["run", str(write_sweep_file(parent, 10)), "--storage", f"{parent}/runs", "--address", "local"]
        time_command(arguments, {})
        for rows in args.rows:
            for line in measure_folder(parent, rows, one_more=args.one_more):
                print(json.dumps(line), flush=True)
        log = parent / "requests.log"
        with serve_bucket(log) if args.bucket_rows else contextlib.nullcontext():
            for rows in args.bucket_rows:
                for line in measure_bucket(parent, rows, log):
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

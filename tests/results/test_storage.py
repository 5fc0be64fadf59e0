"""A folder and a bucket do the same for a sweep; a bucket that is busy, stalls or is away loses nothing."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import build_sweep_command
from oracle import hash_best_weights, read_stable_table, start_process, wait_for
from pyarrow import fs
from s3 import BUCKET, SECRET_KEY, S3Server, serve_busy_proxy, set_environment
from typer.testing import CliRunner

from raylm.cli.app import app
from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.report import formats
from raylm.report.analysis import load_results
from raylm.report.reference import load_reference
from raylm.results import bucket as buckets
from raylm.results import manifest, sweep_record
from raylm.results.bucket import Bucket
from raylm.results.folder import load_rows, open_latest_checkpoint, prune_checkpoints, write_final_status
from raylm.results.open_storage import open_storage
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import FAILED
from raylm.results.storage import Folder, Storage

pytest_plugins = ["storages"]


# ---- the same of both ---------------------------------------------------------------------------------------------


def test_what_is_written_is_there(storage: Storage) -> None:
    storage.create()
    assert storage.list_entries() == {} or storage.list_entries().keys() <= {""}
    storage.write("a.txt", "one")
    storage.write("deep/er/b.txt", "zwölf")
    assert storage.read("deep/er/b.txt") == "zwölf"
    assert (
        storage.has_text("a.txt", "one") and not storage.has_text("a.txt", "two") and not storage.has_text("none", "")
    )
    assert storage.list_entries() == {"a.txt": 3, "deep": None, "deep/er": None, "deep/er/b.txt": 6}
    assert storage.list_entries(recursive=False) == {"a.txt": 3, "deep": None}
    assert storage.list_entries("deep") == {"deep/er": None, "deep/er/b.txt": 6}
    assert storage.list_entries("nowhere") == {}
    assert storage.subfolder("deep").read("er/b.txt") == "zwölf"
    storage.write("a.txt", "")
    assert storage.read("a.txt") == ""


def test_what_is_not_there_is_not_found(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("none.json")
    storage.remove("none.json")


def test_a_removed_folder_takes_along_what_is_below_it_alone(storage: Storage) -> None:
    for name in ("x/1", "x/y/2", "xx/3"):
        storage.write(name, name)
    storage.remove("x")
    storage.remove("xx/3")
    assert [name for name, size in storage.list_entries().items() if size is not None] == []


def test_a_folder_is_on_this_machine_while_it_is_asked_for(storage: Storage) -> None:
    storage.write("checkpoint/one", "1")
    storage.write("checkpoint/more/two", "22")
    with storage.local_copy("checkpoint") as folder:
        assert (folder / "one").read_text() == "1" and (folder / "more" / "two").read_text() == "22"
    assert folder.exists() == isinstance(storage, Folder)


def test_what_is_added_to_a_file_is_soon_there_and_stays(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "UPLOAD_SECONDS", 0.05)
    for text in ("first é\n", "second\n"):
        with storage.open_append("launch-001/run/log.txt") as descriptor:
            os.write(descriptor, text.encode())
            deadline = time.monotonic() + 30
            while text not in (
                storage.read("launch-001/run/log.txt") if storage.list_entries("launch-001/run") else ""
            ):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.write(descriptor, b"and its end\n")
    assert storage.read("launch-001/run/log.txt") == "first é\nand its end\nsecond\nand its end\n"


def test_rows_are_the_same_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """Finished, interrupted, failed; a cut file and a foreign manifest do not count."""
    trials = [TrialConfig(seed=seed) for seed in range(4)]
    here = Folder(tmp_path / "here")
    for seed, (losses, of) in enumerate([((5.0, 4.0, 4.5), 3), ((5.0,), 2), ((5.0, 3.0), 3), ((6.0,), 1)]):
        for epochs in range(1, len(losses) + 1):
            _save(here.path, trials[seed], epochs - 1, losses[:epochs], of)
    write_final_status(here, "launch-001", trials[1], FAILED, "no memory")
    last = here.path / "launch-001" / trials[2].run_name / "checkpoint_000001" / "model.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    (here.path / "launch-002" / trials[3].run_name).mkdir(parents=True)
    fs.copy_files(str(here.path), bucket.tune_storage()[0], destination_filesystem=bucket.tune_storage()[1])

    local, remote = load_rows(here, trials), load_rows(bucket, trials)
    assert [row.status for row in local.rows] == ["done", "failed", "interrupted", "done"]
    assert remote.rows == local.rows
    assert formats.format_csv(remote) == formats.format_csv(local)
    sweep_record.write(bucket, sweep_record.SweepRecord("here", trials))
    shown = CliRunner().invoke(app, ["report", bucket.uri, "--format", "csv"])
    assert shown.exit_code == 0 and shown.stdout == formats.format_csv(local, load_reference())
    with open_latest_checkpoint(bucket, trials[2]) as checkpoint:
        assert checkpoint is not None and manifest.verify(checkpoint) is not None
        assert (
            "checkpoint_000000" in remote.rows[2].latest_checkpoint.folder
            if remote.rows[2].latest_checkpoint
            else False
        )
    prune_checkpoints(remote)
    assert load_rows(bucket, trials).rows == local.rows


def _save(folder: Path, trial: TrialConfig, number: int, losses: tuple[float, ...], of: int) -> None:
    checkpoint = folder / "launch-001" / trial.run_name / f"checkpoint_{number:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(f"weights {losses}".encode())
    progress = Progress(of * 10, 1, step=len(losses) * 10)
    for epoch, loss in enumerate(losses, start=1):
        progress.evaluations.append(EvalMetrics(epoch, epoch * 10, 100 * epoch, loss + 1, loss, loss + 2))
    manifest.write(checkpoint, trial, progress)


# ---- keys ---------------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_sent_to_another_process_holds_no_key(bucket: Bucket) -> None:
    bucket.write("a", "b")
    for sent in (pickle.dumps(bucket), pickle.dumps(bucket.tune_storage())):
        assert SECRET_KEY.encode() not in sent
    assert pickle.loads(pickle.dumps(bucket)).read("a") == "b"
    path, filesystem = pickle.loads(pickle.dumps(bucket.tune_storage()))
    assert filesystem.get_file_info(f"{path}/a").size == 1


# ---- buckets that are no good, busy, away -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "endpoint", "words"),
    [
        ("s3://not-there/runs", None, "there is no bucket not-there"),
        (f"s3://{BUCKET}/runs", "http://127.0.0.1:9", "cannot be reached"),
    ],
)
def test_a_bucket_that_cannot_be_had_is_named_soon(s3: S3Server, place: str, endpoint: str | None, words: str) -> None:
    began = time.monotonic()
    with set_environment({"AWS_ENDPOINT_URL": endpoint or s3.url}), pytest.raises(UserError, match=words) as caught:
        load_results(place)
    assert "\n" not in str(caught.value) and place in str(caught.value)
    assert time.monotonic() - began < 60


def test_a_bucket_without_a_sweep_is_no_results_folder(bucket: Bucket) -> None:
    with pytest.raises(UserError, match="is not a results folder"):
        load_results(bucket.uri)


def test_a_busy_bucket_is_asked_again(s3: S3Server, bucket: Bucket) -> None:
    with serve_busy_proxy(s3, refuse_every=3) as proxy, set_environment({"AWS_ENDPOINT_URL": proxy.url}):
        asked = open_storage(f"{bucket.uri}/busy")
        for number in range(10):
            asked.write(f"folder/{number}", f"text {number}")
        assert [asked.read(f"folder/{number}") for number in range(10)] == [f"text {n}" for n in range(10)]
        assert len(asked.list_entries("folder")) == 10
        asked.remove("folder")
        assert asked.list_entries("folder") == {}
    assert proxy.num_refused >= 10


# ---- whole sweeps -------------------------------------------------------------------------------------------------

SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="small", space={{
    "dataset": {text!r}, "model": "gpt2-nano", "context_length": 16, "batch_size": 2, "dropout": 0.1, "epochs": 3,
    "learning_rate": tune.grid_search([1e-3, 2e-3, 3e-3]), "max_train_tokens": 2_000,
}}, resources=Resources(cpus=1))
"""
STALL_SECONDS = 20.0


@pytest.fixture(scope="module")
def undisturbed(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep file and its results in `small`."""
    place = tmp_path_factory.mktemp("undisturbed")
    (place / "small.py").write_text(SWEEP.format(text=str(small_text)))
    done = subprocess.run(build_sweep_command(place / "small.py", place), check=False, capture_output=True)
    assert done.returncode == 0
    return place


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_in_a_bucket_that_is_killed_refused_and_stalled_ends_as_an_undisturbed_one(
    s3: S3Server, bucket: Bucket, undisturbed: Path, tmp_path: Path
) -> None:
    command = [*build_sweep_command(undisturbed / "small.py", Path())[:-1], bucket.uri]
    with serve_busy_proxy(s3, refuse_every=5) as proxy, set_environment({"AWS_ENDPOINT_URL": proxy.url}):
        with start_process(command, tmp_path / "first") as first:
            wait_for(lambda: (tmp_path / "first").read_text().count("  epoch ") >= 2, 300)
            first.kill()
        with start_process(command, tmp_path / "second") as second:
            wait_for(lambda: (tmp_path / "second").read_text().count("  epoch ") >= 1, 300)
            s3.process.send_signal(signal.SIGSTOP)
            time.sleep(STALL_SECONDS)
            s3.process.send_signal(signal.SIGCONT)
            assert second.wait(timeout=400) == 0, (tmp_path / "second").read_text()
        assert proxy.num_refused > 10

    whole = bucket.subfolder("small")
    with whole.local_copy("") as copy:
        assert read_stable_table(copy) == read_stable_table(undisturbed / "small")
        assert hash_best_weights(copy) == hash_best_weights(undisturbed / "small")
        holders = [path for path in copy.rglob("*") if path.is_file() and SECRET_KEY.encode() in path.read_bytes()]
        assert holders == []
    assert SECRET_KEY not in (tmp_path / "first").read_text() + (tmp_path / "second").read_text()


@pytest.mark.chaos
def test_a_sweep_in_googles_bucket_that_is_killed_goes_on(
    google_bucket: Bucket, undisturbed: Path, tmp_path: Path
) -> None:
    command = [*build_sweep_command(undisturbed / "small.py", Path())[:-1], google_bucket.uri]
    with start_process(command, tmp_path / "first") as first:
        wait_for(lambda: (tmp_path / "first").read_text().count("  epoch ") >= 2 or first.poll() is not None, 300)
        first.kill()
    with start_process(command, tmp_path / "second") as second:
        assert second.wait(timeout=300) == 0, (tmp_path / "second").read_text()
    with google_bucket.subfolder("small").local_copy("") as copy:
        assert read_stable_table(copy) == read_stable_table(undisturbed / "small")
        assert hash_best_weights(copy) == hash_best_weights(undisturbed / "small")

"""Storage backends: a directory and buckets behave the same, also while a bucket is busy, stalled or unreachable."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TRIAL, save_checkpoint
from oracle import wait_for
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
from raylm.results.folder import list_launches, load_rows, open_latest_checkpoint, prune_checkpoints, write_final_status
from raylm.results.open_storage import open_storage
from raylm.results.rows import FAILED
from raylm.results.storage import Folder, Storage
from raylm.results.sweep_record import SweepRecord

pytest_plugins = ["storages"]


# ---- all backends -------------------------------------------------------------------------------------------------


def test_written_files_are_listed_and_read(storage: Storage) -> None:
    storage.create()
    assert storage.list_entries() == {} or storage.list_entries().keys() <= {""}
    storage.write("a.txt", "one")
    storage.write("deep/er/b.txt", "zwölf")
    assert storage.read("deep/er/b.txt") == "zwölf"
    assert storage.has_text("a.txt", "one")
    assert not storage.has_text("a.txt", "two") and not storage.has_text("none", "")
    assert storage.list_entries() == {"a.txt": 3, "deep": None, "deep/er": None, "deep/er/b.txt": 6}
    assert storage.list_entries(recursive=False) == {"a.txt": 3, "deep": None}
    assert storage.list_entries("deep") == {"deep/er": None, "deep/er/b.txt": 6}
    assert storage.list_entries("nowhere") == {}
    assert storage.subfolder("deep").read("er/b.txt") == "zwölf"
    storage.write("a.txt", "")
    assert storage.read("a.txt") == ""


def test_missing_file_is_not_found_and_can_be_removed(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("none.json")
    storage.remove("none.json")


def test_removing_a_folder_removes_its_content_only(storage: Storage) -> None:
    for name in ("x/1", "x/y/2", "xx/3"):
        storage.write(name, name)
    storage.remove("x")
    storage.remove("xx/3")
    assert [name for name, size in storage.list_entries().items() if size is not None] == []


def test_local_copy_has_the_files_of_a_folder(storage: Storage) -> None:
    storage.write("checkpoint/one", "1")
    storage.write("checkpoint/more/two", "22")
    with storage.local_copy("checkpoint") as folder:
        assert (folder / "one").read_text() == "1" and (folder / "more" / "two").read_text() == "22"
    assert folder.exists() == isinstance(storage, Folder)


def test_appended_text_appears_soon_and_is_kept(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "launch-001/run/log.txt"

    def is_visible(text: str) -> bool:
        return bool(storage.list_entries("launch-001/run")) and text in storage.read(name)

    monkeypatch.setattr(buckets, "UPLOAD_SECONDS", 0.05)
    for text in ("first é\n", "second\n"):
        with storage.open_append(name) as descriptor:
            os.write(descriptor, text.encode())
            wait_for(partial(is_visible, text), 30)
            os.write(descriptor, b"and its end\n")
    assert storage.read(name) == "first é\nand its end\nsecond\nand its end\n"


# ---- rows in a bucket ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["bucket", "google_bucket"])
def any_bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket of each kind."""
    bucket: Bucket = request.getfixturevalue(request.param)
    return bucket


def copy_to_bucket(folder: Path, bucket: Bucket) -> None:
    """Upload the files of a folder as `gcloud storage cp` does: without objects for folders."""
    path, filesystem = bucket.tune_storage()
    for file in folder.rglob("*"):
        if file.is_file():
            with filesystem.open_output_stream(f"{path}/{file.relative_to(folder)}") as stream:
                stream.write(file.read_bytes())


def test_rows_of_a_bucket_equal_those_of_a_folder(any_bucket: Bucket, tmp_path: Path) -> None:
    """Compare done, failed and interrupted trials, one with a truncated checkpoint."""
    trials, local = [TrialConfig(seed=seed) for seed in range(4)], Folder(tmp_path / "local")
    for trial, losses, num_epochs in zip(
        trials, [(5.0, 4.0, 4.5), (5.0,), (5.0, 3.0), (6.0,)], [3, 2, 3, 1], strict=True
    ):
        for epoch in range(len(losses)):
            name = f"launch-001/{epoch}"
            save_checkpoint(local.path, name, *losses[: epoch + 1], num_epochs=num_epochs, trial=trial)
    write_final_status(local, "launch-001", trials[1], FAILED, "no memory")
    weights = local.path / "launch-001" / trials[2].run_name / "checkpoint_000001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    copy_to_bucket(local.path, any_bucket)

    expected, results = load_rows(local, trials), load_rows(any_bucket, trials)
    assert [row.status for row in expected.rows] == ["done", "failed", "interrupted", "done"]
    assert results.rows == expected.rows and list_launches(any_bucket) == ["launch-001"]
    assert formats.format_csv(results) == formats.format_csv(expected)
    interrupted = results.rows[2].latest_checkpoint
    assert interrupted is not None and interrupted.folder.endswith("checkpoint_000000")
    with open_latest_checkpoint(any_bucket, trials[2], ["launch-001"]) as checkpoint:
        assert checkpoint is not None and manifest.verify(checkpoint) is not None
    prune_checkpoints(results)
    assert load_rows(any_bucket, trials).rows == expected.rows
    removed = f"launch-001/{trials[0].run_name}/checkpoint_000000"
    assert [name for name in any_bucket.list_entries() if name.startswith(removed)] == []


def test_report_command_reads_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "local", "launch-001/0", 3.0, num_epochs=1)
    copy_to_bucket(tmp_path / "local", bucket)
    sweep_record.write(bucket, SweepRecord("local", [TRIAL]))
    result = CliRunner().invoke(app, ["report", bucket.uri, "--format", "csv"])
    expected = formats.format_csv(load_rows(Folder(tmp_path / "local"), [TRIAL]), load_reference())
    assert result.exit_code == 0 and result.stdout == expected


# ---- credentials --------------------------------------------------------------------------------------------------


def test_pickled_bucket_has_no_credentials(bucket: Bucket) -> None:
    bucket.write("a", "b")
    for sent in (pickle.dumps(bucket), pickle.dumps(bucket.tune_storage())):
        assert SECRET_KEY.encode() not in sent
    assert pickle.loads(pickle.dumps(bucket)).read("a") == "b"
    path, filesystem = pickle.loads(pickle.dumps(bucket.tune_storage()))
    assert filesystem.get_file_info(f"{path}/a").size == 1


# ---- missing, busy and unreachable buckets ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "endpoint", "message"),
    [
        ("s3://not-there/runs", None, "there is no bucket not-there"),
        (f"s3://{BUCKET}/runs", "http://127.0.0.1:9", "cannot be reached"),
    ],
)
def test_unreachable_bucket_is_reported(s3: S3Server, uri: str, endpoint: str | None, message: str) -> None:
    with set_environment({"AWS_ENDPOINT_URL": endpoint or s3.url}), pytest.raises(UserError, match=message) as caught:
        load_results(uri)
    assert "\n" not in str(caught.value) and uri in str(caught.value)


def test_bucket_without_a_sweep_is_not_a_results_folder(bucket: Bucket) -> None:
    with pytest.raises(UserError, match="is not a results folder"):
        load_results(bucket.uri)


def test_requests_to_a_busy_bucket_are_retried(s3: S3Server, bucket: Bucket) -> None:
    with serve_busy_proxy(s3, refuse_every=3) as proxy, set_environment({"AWS_ENDPOINT_URL": proxy.url}):
        storage = open_storage(f"{bucket.uri}/busy")
        for number in range(10):
            storage.write(f"folder/{number}", f"text {number}")
        assert [storage.read(f"folder/{number}") for number in range(10)] == [f"text {n}" for n in range(10)]
        assert len(storage.list_entries("folder")) == 10
        storage.remove("folder")
        assert storage.list_entries("folder") == {}
    assert proxy.num_refused >= 10


class ReplacingFilesystem:
    """File system on which another process replaces a file after a reader has asked for its size."""

    def __init__(self, filesystem: Any, replacements: list[Callable[[], None]]) -> None:
        self._filesystem, self._replacements = filesystem, replacements

    def open_input_stream(self, path: str) -> Any:
        stream = self._filesystem.open_input_stream(path)  # asks for the size
        if self._replacements:
            self._replacements.pop(0)()
        return stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)


def test_file_that_is_replaced_by_a_longer_one_is_read_whole(bucket: Bucket) -> None:
    texts = [f"{number} {'a' * number}" for number in range(1, 4)]
    writer = Bucket(bucket.uri)
    writer.write("live.json", texts[0])
    replacements: list[Callable[[], None]] = [partial(writer.write, "live.json", text) for text in texts[1:]]
    vars(bucket)["_filesystem"] = ReplacingFilesystem(bucket._filesystem, replacements)
    assert bucket.read("live.json") == texts[-1]
    assert replacements == []

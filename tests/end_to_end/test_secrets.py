"""Secrets are not written anywhere, links are not followed, and no code of a model or a results folder is run."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_sweep_command
from ray_cluster import PROGRAMS
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from raylm.config.catalog import NANO_MODEL
from raylm.data import preparation, tokenizer
from raylm.errors import UserError
from raylm.training import models

# ---- secrets ------------------------------------------------------------------------------------------------------

SECRETS = {
    "WANDB_API_KEY": "b3f1c0ffee5ca1ab1e0ddba11deadbeefca11ab1",
    "HF_TOKEN": "hf_QmFzZTY0SXNOb3RBU2VjcmV0QXRBbGw",
    "AWS_ACCESS_KEY_ID": "AKIAQ7CANARY4XBIRD2Z",
    "AWS_SECRET_ACCESS_KEY": "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",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEJr7SingCanarySing3n2x8v0Q5t",
}
GIVEN_TOKEN = "5ec7e75ec7e7" * 5 + "beef"


@dataclass(frozen=True)
class Place:
    """Folder with a home, a cache, results and temporary files of its own, and the output of a command there."""

    folder: Path
    environment: dict[str, str] = field(repr=False)
    said: str = ""

    @property
    def results(self) -> Path:
        return self.folder / "runs" / "small"

    @property
    def token(self) -> Path:
        """File of the token that Ray creates."""
        return self.folder / "home" / ".ray" / "auth_token"

    def run(self, dataset: Path, *seeds: int) -> Place:
        """Run a sweep of these seeds to its end."""
        done = subprocess.run(
            build_sweep_command(PROGRAMS / "seeds.py", self.folder / "runs"),
            capture_output=True,
            text=True,
            timeout=570,
            check=False,
            env={**self.environment, "RAYLM_TESTS_TEXT": str(dataset), "RAYLM_TESTS_SEEDS": ",".join(map(str, seeds))},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Place(self.folder, self.environment, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Place below /tmp, because paths of Ray's sockets are limited; temporary files are in it, too."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rl-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for inner in ("home", "tmp"):
            (folder / inner).mkdir()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_", "XDG_"))}
        settings = {"HOME": folder / "home", "TMPDIR": folder / "tmp", "RAY_TMPDIR": folder / "tmp"}
        settings |= {"RAYLM_CACHE": folder / "cache"}
        nowhere = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}  # with wandb's key, where nothing is
        paths = {key: str(value) for key, value in settings.items()}
        yield Place(folder, {**inherited, **SECRETS, **nowhere, **paths})


@pytest.fixture(scope="module")
def swept(place: Place, small_text: Path) -> Place:
    """Place after a sweep of one trial, with secrets in its environment and a token that Ray created."""
    return place.run(small_text, 0)


def secret_forms(secret: str) -> list[bytes]:
    """Return the forms of a secret in a file: plain, and base64 after each number of preceding bytes."""
    written = [secret.encode()]
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + secret.encode())
        sure = encoded[4 if before else 0 : -4]  # the characters that depend on nothing else
        written += [sure, sure.replace(b"+", b"-").replace(b"/", b"_")]
    return written


def contents(raw: bytes, depth: int = 3) -> Iterator[bytes]:
    """Yield bytes and everything packed in them."""
    yield raw
    if depth and raw[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(raw), depth - 1)
    elif depth and raw[:1] == b"\x78" and (inflated := _inflated(raw)):
        yield from contents(inflated, depth - 1)
    elif depth and zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for name in archive.namelist():
                yield from contents(archive.read(name), depth - 1)


def _inflated(raw: bytes) -> bytes:
    try:
        return zlib.decompress(raw)
    except zlib.error:
        return b""


def files_below(folder: Path) -> list[Path]:
    """Return the files below a folder, without sockets and links."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]


def find_files_with(folder: Path, secret: str) -> list[Path]:
    """Return the files that contain a secret."""
    written = secret_forms(secret)
    return [
        path
        for path in files_below(folder)
        if any(one in content for content in contents(path.read_bytes()) for one in written)
    ]


@pytest.mark.parametrize("pack", [bytes, base64.b64encode, lambda raw: base64.b64encode(b"xy" + raw), gzip.compress])
def test_search_finds_a_secret_in_any_packing(tmp_path: Path, pack: Any) -> None:
    (tmp_path / "plain").write_bytes(pack(b"key=" + GIVEN_TOKEN.encode() + b";"))
    with zipfile.ZipFile(tmp_path / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", pack(GIVEN_TOKEN.encode()))
    (tmp_path / "other").write_bytes(pack(b"something else"))
    assert find_files_with(tmp_path, GIVEN_TOKEN) == [tmp_path / "archive", tmp_path / "plain"]


@pytest.mark.ray
@pytest.mark.parametrize("secret", SECRETS)
def test_no_file_and_no_output_of_a_sweep_contains_a_secret(swept: Place, secret: str) -> None:
    assert "1 done" in swept.said
    assert list(swept.results.glob("launch-*/tuner.pkl")), "this is a file that must be looked into"
    assert list(swept.folder.glob("tmp/ray/session_*/logs/*")), "and these are Ray's own"
    assert list(swept.results.glob("wandb/offline-run-*/logs/*")), "and these are wandb's"
    assert find_files_with(swept.folder, SECRETS[secret]) == []
    assert SECRETS[secret] not in swept.said


@pytest.mark.ray
def test_token_of_ray_is_in_one_file_that_only_its_owner_reads(swept: Place) -> None:
    token = swept.token.read_text().strip()
    assert len(token) > 30
    assert token not in swept.said
    assert find_files_with(swept.folder, token) == [swept.token]
    assert swept.token.stat().st_mode & 0o077 == 0, f"{swept.token} has mode {swept.token.stat().st_mode & 0o777:o}"


def test_ray_and_the_hubs_client_send_no_telemetry() -> None:
    names = ("HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")  # a choice of the user's own goes before
    env = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "telemetry.py")], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split() == ["True", "False"]


# ---- code and links in a results folder ---------------------------------------------------------------------------


class Evil:
    """Object that creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.witness), "w")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of all files below a folder."""
    return {str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes()) for path in files_below(folder)}


@pytest.mark.ray
def test_sweep_resumes_without_following_links_or_unpickling(swept: Place, small_text: Path, tmp_path: Path) -> None:
    outside, witness = tmp_path / "outside", tmp_path / "unpickled"
    (trial,) = (path.parent for path in swept.results.glob("launch-001/*/params.json"))
    outside.mkdir()
    trial.rename(outside / "trial")
    trial.symlink_to(outside / "trial")
    second = swept.results / "launch-002" / trial.name
    second.mkdir(parents=True)
    for target in (outside / "trial" / "checkpoint_000099", outside / "folder"):
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    (second / "checkpoint_000007").symlink_to(outside / "folder")
    (swept.results / "launch-old").symlink_to(outside / "folder")
    for name in ("results.md", "results.csv", "report.html", ".running", ".writable"):
        (outside / name).write_text("mine")
        (swept.results / name).unlink(missing_ok=True)
        (swept.results / name).symlink_to(outside / name)
    for pickled in [*swept.results.rglob("*.pkl"), swept.results / "launch-002" / "tuner.pkl"]:
        pickled.write_bytes(pickle.dumps(Evil(witness)))
    before = snapshot(outside)

    again = Place(swept.folder, {**swept.environment, "RAY_AUTH_TOKEN": GIVEN_TOKEN}).run(small_text, 0, 1)

    assert "2 done" in again.said
    assert snapshot(outside) == before
    assert not witness.exists()
    assert GIVEN_TOKEN not in again.said
    assert find_files_with(swept.folder, GIVEN_TOKEN) == []


# ---- code in a model ----------------------------------------------------------------------------------------------


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Path]:
    """File that exists if code of a model has run."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(tmp_path: Path, witness: Path) -> Path:
    """Folder of a small GPT-2 with its tokenizer, and Python code that creates `witness`."""
    folder = tmp_path / "model"
    torch.manual_seed(0)
    spoken = tokenizer.train(["some words to train on, some more words to train on\n" * 20])
    assert isinstance(spoken, PreTrainedTokenizerFast)
    spoken.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(spoken), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "code.py").write_text(
        f"open({str(witness)!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    )
    return folder


def write_into(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def load(folder: Path, *, pretrained: bool = True) -> Any:
    spoken = tokenizer.load(folder, "model")
    source = models.resolve_model(str(folder), pretrained=pretrained)
    return models.load_model(source, vocab_size=len(spoken), dropout=None, seed=0)


AUTO_MAP = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoModelForCausalLM": "code.Model",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
}


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("pretrained", [True, False])
def test_known_model_with_own_code_is_loaded_without_it(model: Path, pretrained: bool) -> None:
    write_into(model / "config.json", auto_map=AUTO_MAP)
    write_into(model / "tokenizer_config.json", auto_map=AUTO_MAP)
    assert type(load(model, pretrained=pretrained)) is GPT2LMHeadModel


@pytest.mark.usefixtures("witness")
def test_tokenizer_with_own_code_is_refused(model: Path) -> None:
    write_into(model / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Tokenizer")
    write_into(model / "config.json", auto_map=AUTO_MAP, model_type="foreign")
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        tokenizer.load(model, "model")


REFUSED = r"safetensors|weights"


def pickled(witness: Path) -> dict[str, bytes]:
    """Return a state dict that runs code: as a plain pickle, and in both formats of torch.save."""
    archive, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"wte.weight": Evil(witness)}, archive)
    torch.save({"wte.weight": Evil(witness)}, legacy, _use_new_zipfile_serialization=False)
    return {"pickle": pickle.dumps(Evil(witness)), "archive": archive.getvalue(), "legacy": legacy.getvalue()}


@pytest.mark.parametrize("kind", ["pickle", "archive", "legacy"])
@pytest.mark.parametrize("place", ["alone", "beside foreign safetensors", "named safetensors", "in the index"])
def test_pickled_weights_are_refused_unread(model: Path, witness: Path, kind: str, place: str) -> None:
    content = pickled(witness)[kind]
    weights = model / "model.safetensors"
    (model / "pytorch_model.bin").write_bytes(content)
    if place == "beside foreign safetensors":
        weights.rename(model / "foreign.safetensors")
    elif place == "named safetensors":
        weights.write_bytes(content)
    else:
        weights.unlink()
    if place == "in the index":
        index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        (model / "other.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=REFUSED):
        load(model)


def test_pickled_tokens_in_the_cache_are_refused_unread(
    tmp_path: Path, witness: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path / "cache"))
    made = preparation.prepare(str(small_text), None, NANO_MODEL)
    np.save(tmp_path / "cache" / "corpora" / made.fingerprint / "train.npy", np.array([Evil(witness)], dtype=object))
    with pytest.raises(ValueError, match=r"memory-mapped|allow_pickle"):
        preparation.load_cached(made.fingerprint)


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "../elsewhere.safetensors", "elsewhere/../../elsewhere.safetensors"]
)
def test_index_of_weights_names_only_safetensors_in_its_folder(model: Path, name: str) -> None:
    """Whole weights: only their name is wrong."""
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    torch.save(tensors, model / "pytorch_model.bin")
    (model / "elsewhere").mkdir()
    weights.rename(model.parent / "elsewhere.safetensors")
    (model / "decoy.safetensors").write_bytes((model.parent / "elsewhere.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=REFUSED):
        load(model)

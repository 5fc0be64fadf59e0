"""A server for wandb's real client: one that keeps what it is sent, one that refuses, one that never answers; and a
reader of what the client leaves on the disk."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

EMPTY_RUN: dict[str, Any] = {
    **dict.fromkeys(("historyLineCount", "eventsLineCount", "logLineCount"), 0),
    **dict.fromkeys(("historyTail", "eventsTail"), "[]"),
    **dict.fromkeys(("summaryMetrics", "config"), "{}"),
    **{"wandbConfig": '{"t": 1}', "tags": [], "sweepName": None, "projectId": "p"},
}


class WandbServer(http.server.ThreadingHTTPServer):
    """Keeps runs by their ids, the rows of their histories by their places."""

    daemon_threads = True

    def __init__(self, behavior: str) -> None:
        super().__init__(("127.0.0.1", 0), WandbHandler)
        self.behavior = behavior
        self.runs: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, str] = {}
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class WandbHandler(http.server.BaseHTTPRequestHandler):
    """Answers as wandb 0.31 asks."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.behavior == "stall":
            self.server.closing.wait()
        refused = self.server.behavior not in ("keep", "stall")
        said = {"errors": [{"message": "no"}]} if refused else self.build_response(body)
        told = json.dumps(said).encode()
        self.send_response(int(self.server.behavior) if refused else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_POST = do_PUT = handle_request  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Nothing is printed."""

    def build_response(self, body: bytes) -> dict[str, Any]:
        if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.store_history(found[1], json.loads(body).get("files") or {})
            return {}
        return {"data": self.resolve_query(json.loads(body))} if self.path == "/graphql" else {}

    def store_history(self, run_id: str, files: dict[str, Any]) -> None:
        if history := files.get("wandb-history.jsonl"):
            rows = [json.loads(line) for line in history["content"]]
            kept = self.server.history.setdefault(run_id, {})
            kept.update(enumerate(rows, history["offset"]))
            self.server.runs[run_id] |= {
                "historyLineCount": len(kept),
                "historyTail": json.dumps(history["content"][-1:]),
            }
        if summary := files.get("wandb-summary.json"):
            self.server.runs[run_id]["summaryMetrics"] = summary["content"][-1]

    def resolve_query(self, payload: dict[str, Any]) -> dict[str, Any]:
        given, query = payload.get("variables") or {}, payload["query"]
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "me"}}
        if "RunResumeStatus" in query:
            run = self.server.runs.get(given["name"])
            return {"model": {**project, "bucket": run} if run else None}
        if "UpsertBucket" in query:
            named = {"id": given["name"], "name": given["name"], "displayName": given.get("displayName")}
            run = self.server.runs.setdefault(given["name"], {**EMPTY_RUN, **named, "project": project})
            run["config"] = given.get("config") or run["config"]
            if given.get("groupName"):
                self.server.groups[given["name"]] = given["groupName"]
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        return {}


@contextlib.contextmanager
def serve_wandb(behavior: str) -> Iterator[WandbServer]:
    """A server that `keep`s, `stall`s, or refuses with a code as `401`."""
    server = WandbServer(behavior)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


# ---- what is on the disk ------------------------------------------------------------------------------------------

BLOCK_BYTES, HEADER_BYTES = 32768, 7


def read_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a header of 7 bytes, then a log as LevelDB's."""
    content, at, whole = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + HEADER_BYTES <= len(content):
        if BLOCK_BYTES - at % BLOCK_BYTES < HEADER_BYTES:  # no header fits: padding
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + HEADER_BYTES])
        whole += content[at + HEADER_BYTES : at + HEADER_BYTES + size]
        at += HEADER_BYTES + size
        if kind in (1, 4):  # full, or last
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


class OfflineRun:
    """What the client wrote of a run."""

    def __init__(self, file: Path) -> None:
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.step_metrics: dict[str, str] = {}
        for record in read_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.id, self.group, self.name = record.run.run_id, record.run.run_group, record.run.display_name
                self.project = record.run.project
                self.config |= parse_values(record.run.config.update)
            elif kind == "history":
                self.history.append(parse_values(record.history.item))
            elif kind == "summary":
                self.summary |= parse_values(record.summary.update)
            elif kind == "metric":
                self.step_metrics[record.metric.name] = record.metric.step_metric


def parse_values(items: Any) -> dict[str, Any]:
    return {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items}


def load_offline_runs(folder: Path) -> list[OfflineRun]:
    """All offline runs of a results folder."""
    return [OfflineRun(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]

"""Server for wandb's real client, which stores, refuses or stalls; and a reader of the client's offline files."""

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
    """Stores runs by id, and the rows of their histories by index."""

    daemon_threads = True

    def __init__(self, behavior: str) -> None:
        super().__init__(("127.0.0.1", 0), WandbHandler)
        self.behavior = behavior
        self.runs: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, str] = {}
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class WandbHandler(http.server.BaseHTTPRequestHandler):
    """Implements the part of the API that wandb 0.31 uses."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def handle_request(self) -> None:
        self.server.requests.append(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.behavior == "stall":
            self.server.closing.wait()
        is_refused = self.server.behavior not in ("keep", "stall")
        response = {"errors": [{"message": "no"}]} if is_refused else self.build_response(body)
        content = json.dumps(response).encode()
        self.send_response(int(self.server.behavior) if is_refused else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = handle_request  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def build_response(self, body: bytes) -> dict[str, Any]:
        if match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.store_history(match[1], json.loads(body).get("files") or {})
            return {}
        return {"data": self.resolve_query(json.loads(body))} if self.path == "/graphql" else {}

    def store_history(self, run_id: str, files: dict[str, Any]) -> None:
        if history := files.get("wandb-history.jsonl"):
            rows = [json.loads(line) for line in history["content"]]
            stored = self.server.history.setdefault(run_id, {})
            stored.update(enumerate(rows, history["offset"]))
            self.server.runs[run_id] |= {
                "historyLineCount": len(stored),
                "historyTail": json.dumps(history["content"][-1:]),
            }
        if summary := files.get("wandb-summary.json"):
            self.server.runs[run_id]["summaryMetrics"] = summary["content"][-1]

    def resolve_query(self, payload: dict[str, Any]) -> dict[str, Any]:
        variables, query = payload.get("variables") or {}, payload["query"]
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        if "RunResumeStatus" in query:
            run = self.server.runs.get(variables["name"])
            return {"model": {**project, "bucket": run} if run else None}
        if "UpsertBucket" in query:
            names = {"id": variables["name"], "name": variables["name"], "displayName": variables.get("displayName")}
            run = self.server.runs.setdefault(variables["name"], {**EMPTY_RUN, **names, "project": project})
            run["config"] = variables.get("config") or run["config"]
            if variables.get("groupName"):
                self.server.groups[variables["name"]] = variables["groupName"]
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        return {}


@contextlib.contextmanager
def serve_wandb(behavior: str) -> Iterator[WandbServer]:
    """Yield a server that stores runs (`keep`), never answers (`stall`), or refuses with a status such as `401`."""
    server = WandbServer(behavior)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


# ---- offline files ------------------------------------------------------------------------------------------------

BLOCK_BYTES, HEADER_BYTES = 32768, 7


def read_records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: a header of 7 bytes, then a log in LevelDB's format."""
    content, offset, data = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while offset + HEADER_BYTES <= len(content):
        if BLOCK_BYTES - offset % BLOCK_BYTES < HEADER_BYTES:  # no header fits: padding
            offset += BLOCK_BYTES - offset % BLOCK_BYTES
            continue
        _, size, kind = struct.unpack("<IHB", content[offset : offset + HEADER_BYTES])
        data += content[offset + HEADER_BYTES : offset + HEADER_BYTES + size]
        offset += HEADER_BYTES + size
        if kind in (1, 4):  # full, or last
            record = Record()
            record.ParseFromString(data)
            yield record
            data = b""


class OfflineRun:
    """Content of the file of a run."""

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
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def load_offline_runs(folder: Path) -> list[OfflineRun]:
    """Return all offline runs of a results folder."""
    return [OfflineRun(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]

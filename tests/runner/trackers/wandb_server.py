"""A wandb server in this process, as far as wandb's client asks it: accounts, runs, history streams, artifacts, views.

History is kept by line offsets, as wandb's servers do: what is sent for an offset takes its place.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a" * 40
ENTITY = "someone"


@dataclass
class StoredRun:
    """A run as the server has it.

    Attributes:
        lines: its history, raw.
        uploads: how often a part of the history was sent.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    uploads: int = 0
    exit_code: int | None = None
    artifacts: dict[str, str] = field(default_factory=dict)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


class WandbServer:
    """The server; `status` other than 200 is what it answers to everything, and `url` where it is."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, list[str]] = {}
        self.unknown: list[str] = []
        self.operations: list[str] = []
        self.status = 200
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                """Print nothing."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, document = server.status, {"error": "no"}
                try:
                    if status == 200:
                        document = server.answer(self.path, body)
                except Exception as error:  # a test looks at `unknown`
                    server.unknown.append(f"{error!r} {body[:2000]!r}")
                    status = 400
                text = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = answer  # noqa: N815  # http.server's names

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing of clients that hang up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/graphql":
            query = json.loads(body)
            name = query.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", query["query"])[0]
            self.operations.append(name)
            method = getattr(self, f"_{name}", None)
            if method is None:
                self.unknown.append(query["query"])
                return {"data": {}}
            return {"data": method(query.get("variables") or {})}
        if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            return self._stream(self.runs[stream[1]], json.loads(body))
        return {}

    def _stream(self, run: StoredRun, sent: dict[str, Any]) -> dict[str, Any]:
        for name, part in sent.get("files", {}).items():
            if name == "wandb-history.jsonl":
                offset = part["offset"]
                run.lines[offset : offset + len(part["content"])] = part["content"]
                run.uploads += 1
            elif name == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        if "exitcode" in sent:
            run.exit_code = sent["exitcode"]
        return {}

    def _Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802  # operations by wandb's names
        viewer = {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None:
            bucket = {
                "id": "r",
                "name": variables["name"],
                "displayName": run.fields.get("displayName"),
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": 0,
                "historyLineCount": len(run.lines),
                "eventsLineCount": 0,
                "historyTail": json.dumps(run.lines[-1:]),
                "eventsTail": "[]",
                "config": json.dumps(run.config),
                "tags": run.fields.get("tags") or [],
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        project = {
            "id": "p",
            "name": variables["project"],
            "entity": {"id": "e", "name": variables.get("entity") or ENTITY},
            "bucket": bucket,
        }
        return {"model": project}

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        inserted = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], StoredRun())
        run.fields |= {key: value for key, value in variables.items() if value is not None and key != "config"}
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        bucket = {
            "id": "r",
            "name": variables["name"],
            "displayName": run.fields.get("displayName"),
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {
                "id": "p",
                "name": variables["project"],
                "entity": {"id": "e", "name": variables.get("entity") or ENTITY},
            },
            "historyLineCount": len(run.lines),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def _ServerFeaturesQuery(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _ArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        sent = variables["input"]
        name = sent["artifactCollectionName"]
        self.runs[sent["runName"]].artifacts[name] = sent["artifactTypeName"]
        versions = self.artifacts.setdefault(name, [])
        known = sent["digest"] in versions
        if not known:
            versions.append(sent["digest"])
        identity = f"{name}:v{versions.index(sent['digest'])}"
        sequence = {"latestArtifact": {"id": identity} if known else None}
        state = "COMMITTED" if known else "PENDING"
        return {"createArtifact": {"artifact": {"id": identity, "state": state, "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": f"{self.url}/upload/m", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def _CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        nodes = []
        for number, file in enumerate(variables.get("artifactFiles") or variables["input"]["artifactFiles"]):
            artifact = {"id": file["artifactID"]}
            place = {"uploadUrl": f"{self.url}/upload/{number}", "uploadHeaders": [], "storagePath": f"{number}"}
            names = {"id": f"f{number}", "name": file["name"], "displayName": file["name"]}
            nodes.append({"node": names | place | {"uploadMultipartUrls": None, "artifact": artifact}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}

    def _ArtifactByID(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name, _, version = variables["id"].partition(":v")
        entity = {"name": ENTITY}
        project = {"__typename": "Project", "id": "p", "internalId": "1", "name": "lorsa", "entity": entity}
        sequence = {"__typename": "ArtifactSequence", "name": name, "project": project}
        kind = next(run.artifacts[name] for run in self.runs.values() if name in run.artifacts)
        artifact = {
            "__typename": "Artifact",
            "id": variables["id"],
            "artifactSequence": sequence,
            "versionIndex": int(version),
            "artifactType": {"name": kind},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": -2,
            "ttlIsInherited": False,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 1,
            "digest": self.artifacts[name][int(version)],
            "commitHash": None,
            "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [],
        }
        return {"artifact": artifact}

    def _View(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if not self.runs:
            return {"project": None}
        view = self.views.get(variables["viewName"])
        return {"project": {"allViews": {"edges": [] if view is None else [{"node": view}]}}}

    def _UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = variables["name"]
        assert (name in self.views) == ("id" in variables)
        self.views[name] = {"id": name, "displayName": variables["displayName"], "spec": variables["spec"]}
        return {"upsertView": {"view": {"id": name, "name": name}, "inserted": "id" not in variables}}

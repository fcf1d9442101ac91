"""A small Hub on the loopback address: enough of its API for the real huggingface_hub client, and its bad days.

What is known of the API is what the client in `huggingface_hub` asks and reads.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong with the next requests whose method and path match.

    Attributes:
        method, path: The method, and a regular expression found in the path.
        status: Sent in place of an answer.
        headers: Sent with it.
        drop_after: Or: the answer is begun, and the connection closed after so many bytes of its body.
        times: How often.
    """

    method: str
    path: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    times: int = 1


@dataclass
class Repo:
    """Commits by id, each the blob id of every file; branches by name; what is private needs the server's token."""

    private: bool = False
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, str]) -> str:
        """The only way in which what a reader sees changes."""
        oid = hashlib.sha1(json.dumps([len(self.commits), files]).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid


class HubServer(ThreadingHTTPServer):
    """Holds what was pushed, and a log of what was asked."""

    daemon_threads = True

    def __init__(self, token: str = "hf_test"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.lock = threading.Lock()
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self) -> str:
        """Where large files lie: the same server by another name, as the Hub's storage has another host."""
        return f"http://localhost:{self.server_port}/storage"

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """What a reader of a branch sees."""
        repo = self.repos[repo_id]
        return {path: self.blobs[blob] for path, blob in repo.commits[repo.branches[branch]].items()}

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def running_hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Refusal(Exception):
    """An answer that is an error, with the code by which the client knows which."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/api/models/{REPO}/branch/(?P<revision>.+)", "create_branch"),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("GET", rf"/api/models/{REPO}(?:/revision/(?P<revision>.+))?", "info"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("POST", rf"/{REPO}/lfs-verify", "lfs_verify"),
    ("GET", r"/storage/(?P<oid>[0-9a-f]{64})", "lfs_get"),
    ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def log_message(self, *arguments: object) -> None:
        """Nothing on the terminal."""

    def answer(self, method: str) -> None:
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), url.path
        body = self.read_body()
        fault = self.server.fault_of(self.command, path)
        self.drop_after = None if fault is None else fault.drop_after
        if fault is not None and fault.drop_after is None:
            return self.send(fault.status, b"bad day", fault.headers)
        try:
            for wanted, pattern, name in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and wanted == method:
                    found = {key: unquote(value or "") for key, value in match.groupdict().items()}
                    if "repo" in found:
                        self.check_access(found["repo"], writes=method != "GET")
                    return getattr(self, name)(body, **found)
            raise Refusal(404, "", f"no such route: {method} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            text = json.dumps({"error": refusal.message}).encode()
            self.send(refusal.status, text, {key: value for key, value in headers.items() if value})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.server.log.append(f"{self.command} {urlsplit(self.path).path} {status}")
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: self.drop_after])
        if self.drop_after is not None:
            self.close_connection = True

    def send_json(self, value: object, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def check_access(self, repo_id: str, writes: bool) -> None:
        repo = self.server.repos.get(repo_id)
        knows = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if (writes or (repo is not None and repo.private)) and not knows:
            raise Refusal(401, "", "Invalid username or password.")
        if repo is None:
            raise Refusal(404, "RepoNotFound", "Repository not found")

    def files_at(self, repo_id: str, revision: str) -> tuple[str, dict[str, str]]:
        repo = self.server.repos[repo_id]
        oid = repo.branches.get(revision, revision)
        if oid not in repo.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repo.commits[oid]

    def create_repo(self, body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            raise Refusal(401, "", "Invalid username or password.")
        given = json.loads(body)
        repo_id = f"{given['organization'] or 'tester'}/{given['name']}"
        is_new = repo_id not in self.server.repos
        if is_new:
            repo = self.server.repos[repo_id] = Repo(private=given.get("visibility") == "private")
            blob = self.store(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            repo.commit("main", {".gitattributes": blob})
        self.send_json({"url": f"{self.server.url}/{repo_id}", "name": repo_id}, 200 if is_new else 409)

    def whoami(self, body: bytes) -> None:
        self.send_json({"name": "tester", "type": "user", "orgs": []})

    def validate_yaml(self, body: bytes) -> None:
        self.send_json({"errors": [], "warnings": []})

    def info(self, body: bytes, repo: str, revision: str) -> None:
        oid, files = self.files_at(repo, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        self.send_json({"id": repo, "sha": oid, "private": self.server.repos[repo].private, "siblings": siblings})

    def tree(self, body: bytes, repo: str, revision: str, path: str) -> None:
        _, files = self.files_at(repo, revision)
        rows = []
        for name, blob in files.items():
            if not path or name.startswith(f"{path}/"):
                row = {"type": "file", "path": name, "size": len(self.server.blobs[blob]), "oid": blob[:40]}
                if is_large(name):
                    row["lfs"] = {"oid": blob, "size": row["size"], "pointerSize": 130}
                rows.append(row)
        self.send_json(rows)

    def create_branch(self, body: bytes, repo: str, revision: str) -> None:
        branches = self.server.repos[repo].branches
        if revision in branches:
            raise Refusal(409, "", "Reference already exists")
        branches[revision], _ = self.files_at(repo, json.loads(body or b"{}").get("startingPoint", "main"))
        self.send_json({})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        _, files = self.files_at(repo, revision)
        rows = []
        for file in json.loads(body)["files"]:
            path, large = file["path"], is_large(file["path"])
            row = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in files:
                row["oid"] = files[path] if large else git_oid(self.server.blobs[files[path]])
            rows.append(row)
        self.send_json({"files": rows})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        rows = []
        for given in json.loads(body)["objects"]:
            row = {"oid": given["oid"], "size": given["size"]}
            if given["oid"] not in self.server.blobs:
                verify = {"href": f"{self.server.url}/{repo}/lfs-verify"}
                row["actions"] = {"upload": {"href": f"{self.server.storage}/{given['oid']}"}, "verify": verify}
            rows.append(row)
        self.send_json({"transfer": "basic", "objects": rows})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "", "the content is not what its name says")
        self.store(body)
        self.send(200)

    def lfs_verify(self, body: bytes, repo: str) -> None:
        given = json.loads(body)
        if len(self.server.blobs.get(given["oid"], b"")) != given["size"]:
            raise Refusal(400, "", "the upload is not whole")
        self.send_json({})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        """All of it or nothing."""
        lines = [json.loads(line) for line in body.splitlines()]
        oid, files = self.files_at(repo, revision)
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", oid) != oid:
                raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                files[value["path"]] = self.store(base64.b64decode(value["content"]))
            if line["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise Refusal(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = value["oid"]
        with self.server.lock:
            oid = self.server.repos[repo].commit(revision, files)
        self.send_json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        oid, files = self.files_at(repo, revision)
        headers = {"X-Repo-Commit": oid}
        if path not in files:
            return self.send(
                404, b"", {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            )
        content = self.server.blobs[files[path]]
        if not is_large(path):
            return self.send(200, content, {**headers, "ETag": f'"{git_oid(content)}"'})
        linked = {"X-Linked-ETag": f'"{files[path]}"', "X-Linked-Size": str(len(content))}
        self.send(302, b"", {**headers, **linked, "Location": f"{self.server.storage}/{files[path]}"})

    def lfs_get(self, body: bytes, oid: str) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "", "a token was sent to another host than the Hub")
        content = self.server.blobs[oid]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked is None:
            return self.send(200, content, {"ETag": f'"{oid}"'})
        first = int(asked[1])
        span = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.send(206, content[first:], {"ETag": f'"{oid}"', "Content-Range": span})

    def store(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        self.server.blobs[oid] = content
        return oid


def is_large(path: str) -> bool:
    """What the Hub keeps apart from the rest."""
    return path.endswith((".safetensors", ".bin"))


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

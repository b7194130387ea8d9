"""A server on loopback with as much of the Hugging Face Hub's HTTP API as a push and a download of a model need.

It speaks repository creation, preupload, Git LFS with its basic transfer, commits in NDJSON, trees, and files by
HEAD and GET, with the Hub's error codes. It does not speak Xet: clients must have HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
LARGE = (".safetensors", ".png", ".bin")  # which the Hub keeps in LFS


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server; `repositories` are files by repository and path, `requests` what was asked for."""

    def __init__(self, user="user"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.user, self.repositories, self.blobs, self.requests = user, {}, {}, []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def add(self, repository, folder):
        """Make a repository of the files of a folder."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.repositories[repository] = files

    def commit(self, repository):
        """Return the hash of the repository's newest commit, a function of its files."""
        files = sorted(self.repositories[repository].items())
        return hashlib.sha1(repr([(path, git_oid(content)) for path, content in files]).encode()).hexdigest()

    def environment(self, home, token=TOKEN):
        """Return the variables of a client whose home is the folder `home`."""
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return {**own, "HF_TOKEN": token, "NO_PROXY": "127.0.0.1"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        self.server.requests.append((self.command, path))
        for method, pattern, handle in ROUTES:
            if self.command in method.split() and (found := re.fullmatch(pattern, path)):
                return handle(self, *found.groups())
        return self.answer(404, {"error": f"no such route: {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = route  # noqa: N815

    def files(self, repository):
        """Return the files of a repository, or answer that there is none."""
        if repository not in self.server.repositories:
            self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return self.server.repositories[repository]

    def may_write(self, user):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
            return False
        if user != self.server.user:
            self.answer(403, {"error": f"You don't have the rights to create a model under the namespace {user}"})
            return False
        return True

    def create(self):
        asked = json.loads(self.body)
        if not self.may_write(asked["organization"]):
            return
        repository = f"{asked['organization']}/{asked['name']}"
        status = 409 if repository in self.server.repositories else 200
        self.server.repositories.setdefault(repository, {})
        self.answer(status, {"url": f"{self.server.endpoint}/{repository}"})

    def validate(self):
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, user, name):
        files = self.files(f"{user}/{name}")
        if files is None or not self.may_write(user):
            return
        self.answer(
            200,
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": git_oid(files[file["path"]]) if file["path"] in files else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            },
        )

    def batch(self, user, name):
        if not self.may_write(user):
            return
        asked = json.loads(self.body)
        assert asked["operation"] == "upload"
        assert "basic" in asked["transfers"]
        answers = []
        for thing in asked["objects"]:
            actions = {"upload": {"href": f"{self.server.endpoint}/lfs/{thing['oid']}"}}
            known = thing["oid"] in self.server.blobs
            answers.append({"oid": thing["oid"], "size": thing["size"], **({} if known else {"actions": actions})})
        self.answer(200, {"transfer": "basic", "objects": answers})

    def put_blob(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.answer(400, {"error": "the content has another hash"})
            return
        self.server.blobs[oid] = self.body
        self.answer(200)

    def commit(self, user, name):
        files = self.files(f"{user}/{name}")
        if files is None or not self.may_write(user):
            return
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        oid = self.server.commit(f"{user}/{name}")
        url = f"{self.server.endpoint}/{user}/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def info(self, user, name, *_):
        files = self.files(f"{user}/{name}")
        if files is not None:
            siblings = [{"rfilename": path} for path in files]
            sha = self.server.commit(f"{user}/{name}")
            self.answer(200, {"id": f"{user}/{name}", "sha": sha, "siblings": siblings, "tags": [], "private": False})

    def tree(self, user, name):
        files = self.files(f"{user}/{name}")
        if files is None:
            return
        entries = []
        for path, content in files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if path.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self.answer(200, entries)

    def resolve(self, user, name, path):
        files = self.files(f"{user}/{name}")
        if files is None:
            return
        commit = self.server.commit(f"{user}/{name}")
        if path not in files:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        oid = hashlib.sha256(files[path]).hexdigest() if path.endswith(LARGE) else git_oid(files[path])
        self.answer(200, files[path], ETag=f'"{oid}"', X_Repo_Commit=commit)


REPOSITORY = "([^/]+)/([^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{REPOSITORY}/preupload/main", Handler.preupload),
    ("POST", f"/{REPOSITORY}\\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", Handler.put_blob),
    ("POST", f"/api/models/{REPOSITORY}/commit/main", Handler.commit),
    ("GET", f"/api/models/{REPOSITORY}/tree/[^/]+", Handler.tree),
    ("GET", f"/api/models/{REPOSITORY}(/revision/[^/]+)?", Handler.info),
    ("HEAD GET", f"/{REPOSITORY}/resolve/[^/]+/(.+)", Handler.resolve),
]

"""Models on the hub, against a stand-in of its API on this machine: what huggingface_hub asks, and nothing else."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from tiny_checkpoint import tiny_meta, write_checkpoint

pytest.importorskip("huggingface_hub")

from rs_biformer.checkpoint import load_checkpoint
from rs_biformer.checkpoint.hub import fetch, is_hub_name
from rs_biformer.cli import main
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.jobs import load_model, push_model

TOKEN = "hf_" + "s" * 34
META = tiny_meta(encoder="lcnet_035", decoder="segformer", metrics={"mean_iou": 0.5}, protocol="validation-windows")


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {repository: {revision: {file: bytes}}}, and the requests that came."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.asked, self.tokens = {}, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def note(self):
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        return self.path.partition("?")[0]

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self):
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.note())
        revisions = self.server.repositories.get(match[1]) if match else None
        if revisions is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if match[2] not in revisions:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if match[3] not in revisions[match[2]]:
            return self.answer(404, X_Error_Code="EntryNotFound")
        body = revisions[match[2]][match[3]]
        self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=hashlib.sha1(body).hexdigest())

    do_HEAD = do_GET

    def do_POST(self):
        path, content = self.note(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":  # of README.md, which anybody may ask
            return self.json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401)
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            self.server.repositories.setdefault(name, {"main": {}})
            return self.json({"url": f"{self.server.url}/{name}"})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|branch|commit)/(.+)", path)
        if match is None:
            return self.answer(404)
        self.json(getattr(self, match[2])(self.server.repositories[match[1]], match[3], content))

    def preupload(self, revisions, revision, content):
        names = [one["path"] for one in json.loads(content)["files"]]
        return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}

    def branch(self, revisions, revision, content):
        return revisions.setdefault(revision, {}) and {}

    def commit(self, revisions, revision, content):
        lines = [json.loads(line) for line in content.splitlines()]
        for value in (line["value"] for line in lines if line["key"] == "file"):
            revisions[revision][value["path"]] = base64.b64decode(value["content"])
        return {"commitUrl": f"{self.server.url}/owner/name/commit/{'0' * 40}", "commitOid": "0" * 40, "hookOutput": ""}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.url)
    template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "best.ckpt", META)


def test_a_model_is_pushed_and_taken_wherever_models_are(hub, checkpoint, tmp_path, capsys):
    assert main(["push", str(checkpoint), "owner/name", "--license", "CC-BY-4.0"]) == 0
    said = capsys.readouterr()
    assert "/owner/name/commit/" in said.out and "hf://owner/name" in said.out
    files = hub.repositories["owner/name"]["main"]
    assert set(files) == {"model.safetensors", "model.json", "model.stac.json", "README.md"}
    assert files["README.md"].startswith(b"---\nlicense: cc-by-4.0\n") and b"mean\\_iou | 0.5000" in files["README.md"]
    assert json.loads(files["model.stac.json"])["assets"]["model"]["href"] == "model.safetensors"
    files["README.md"] = files["model.json"] = b"!!python/object/apply:os.system [x]"  # nobody reads them

    hub.asked.clear()
    assert main(["info", "hf://owner/name", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bands"] == ["red", "green", "blue"]
    assert {line.split("/resolve/main/")[1] for line in hub.asked} == {"model.safetensors"}
    out = tmp_path / "copy.safetensors"
    assert main(["export", "--checkpoint", "hf://owner/name", "--out", str(out)]) == 0
    assert out.read_bytes() == files["model.safetensors"]
    assert load_checkpoint("hf://owner/name").meta.to_json() == META.to_json()
    written = said.out + said.err + "".join(map(str, capsys.readouterr()))
    assert TOKEN not in written and f"Bearer {TOKEN}" in hub.tokens
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept and not any(TOKEN.encode() in path.read_bytes() for path in kept)


def test_a_revision_is_a_branch(hub, checkpoint):
    push_model(checkpoint, "owner/name", revision="v2")
    assert not hub.repositories["owner/name"]["main"]
    found = load_model("hf://owner/name@v2")
    assert found.meta.encoder == "lcnet_035"
    commit = hashlib.sha1(hub.repositories["owner/name"]["v2"]["model.safetensors"]).hexdigest()
    assert found.tags["MODEL_FILE"] == found.facts["checkpoint"] == f"hf://owner/name@{commit}"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("hf://owner/other", "there is no such repository"),
        ("hf://owner/name@v9", "it has no such revision"),
        ("hf://owner/name", "it has no model.safetensors"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_a_line(hub, name, why):
    hub.repositories["owner/name"] = {"main": {"best.ckpt": b"not read"}}
    with pytest.raises(CheckpointError, match=why) as caught:
        load_model(name)
    text = str(caught.value)
    assert "\n" not in text and "/resolve/" in text and "--checkpoint model.safetensors" in text and TOKEN not in text


def test_without_a_network_the_file_to_fetch_is_named(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"fetch http.*/owner/name/resolve/main/model.safetensors and give"):
        load_model("hf://owner/name")
    assert not hub.asked


def test_who_may_not_write_is_told(hub, checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "w" * 34)
    assert main(["push", str(checkpoint), "owner/name"]) == 2
    said = capsys.readouterr().err
    assert "nothing was pushed to owner/name" in said and "wwww" not in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["hf://owner", "hf://owner/name/file", "hf://../x", "hf://owner/name@", "hf:///"])
def test_other_names_are_refused_before_anything_is_asked(hub, name):
    with pytest.raises(CheckpointError, match="hf://owner/name@revision"):
        fetch(name)
    assert not hub.asked and is_hub_name(name)


def test_names_and_licences_that_are_none_are_refused(hub, checkpoint):
    with pytest.raises(ConfigError, match="write owner/name"):
        push_model(checkpoint, "name")
    with pytest.raises(ConfigError, match="SPDX"):
        push_model(checkpoint, "owner/name", licence="mine\nadmin: true")
    assert not hub.asked

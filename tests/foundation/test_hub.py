"""The hub's own client writes what is pushed: against a server that answers as the hub does, and against none."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.hub import is_hub_id
from llmcxr.image_tokens.settings import ArchitectureSettings
from llmcxr.image_tokens.tokenizer import ImageTokenizer

SIZES = ArchitectureSettings(32, kind="mixer", patch=8, width=16, codebook_size=8, code_dim=4)


class _Hub(BaseHTTPRequestHandler):
    """Takes every file as a part of the commit itself."""

    files: dict[str, bytes] = {}
    made: list[dict] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/repos/create"):
            self.made.append(json.loads(body))
            answer = {"url": f"http://{self.headers['Host']}/me/tokenizer", "name": "me/tokenizer"}
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]}
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/me/tokenizer/commit/1",
                "commitOid": "1",
                "success": True,
            }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for module in ("constants", "hf_api"):
        monkeypatch.setattr(
            f"huggingface_hub.{module}.ENDPOINT", f"http://127.0.0.1:{server.server_port}", raising=False
        )
    monkeypatch.setenv("HF_TOKEN", "hf_invented")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield _Hub
    server.shutdown()
    server.server_close()


def test_a_tokenizer_is_pushed_whole(hub, tmp_path):
    tokenizer = ImageTokenizer(SIZES)
    assert "/me/tokenizer" in tokenizer.push_to_hub("me/tokenizer", private=True)
    assert "private" in str(hub.made[0]) and set(hub.files) == {"config.json", "model.safetensors"}
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert ImageTokenizer.from_pretrained(tmp_path).fingerprint == tokenizer.fingerprint


def test_without_a_hub_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'me/tokenizer' could not be written .* log in .*or connect"):
        ImageTokenizer(SIZES).push_to_hub("me/tokenizer")
    with pytest.raises(UserError, match=r"'me/tokenizer' is no folder here, and could not be fetched"):
        ImageTokenizer.from_pretrained("me/tokenizer")


def test_a_slip_in_a_path_is_no_hub_id(tmp_path):
    assert is_hub_id("me/tokenizer", tmp_path / "none" / "tokenizer")
    assert not is_hub_id("runs/tokenizer", tmp_path / "tokenizer")
    assert not is_hub_id(tmp_path, tmp_path)

"""Where reports may go."""

from __future__ import annotations

import socket

import pytest

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import SettingsError
from llmcxr.synthesis.address import check_address, is_near
from llmcxr.synthesis.client import ChatClient
from llmcxr.synthesis.settings import ChatSettings

NAMES = {
    "gpu1": ["10.1.2.3"], "gpu2": ["8.8.8.8"], "both": ["10.1.2.3", "8.8.8.8"], "vllm.internal": ["172.16.0.9"],
    "public.local": ["93.184.216.34"], "intranet.example.org": ["10.1.2.3"], "localhost": ["127.0.0.1", "::1"],
    "134744072": ["8.8.8.8"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Names as these servers know them, and no others: no test asks a real one."""

    def resolve(host, port, **options):
        if host not in NAMES:
            raise socket.gaierror(f"unknown: {host}")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.20.30.40", True),
        ("192.168.1.5", True), ("172.31.255.1", True), ("fd00::1", True), ("fe80::1%eth0", True), ("localhost", True),
        ("LOCALHOST.", True), ("gpu1", True), ("vllm.internal", True), ("a.localhost", True),
        ("8.8.8.8", False), ("172.32.0.1", False), ("::ffff:8.8.8.8", False), ("2001:4860::8888", False),
        ("169.254.169.254", False), ("0.0.0.0", False), ("100.64.0.1", False), ("192.0.2.1", False),
        ("gpu2", False), ("both", False), ("public.local", False), ("intranet.example.org", False),
        ("localhost.example.org", False), ("127.0.0.1.example.org", False), ("api.example.com", False),
        ("unknown", False), ("134744072", False),
    ],
)  # fmt: skip
def test_what_is_near(host, near):
    assert is_near(host) is near


def test_far_servers_need_a_word_and_the_message_says_why(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="(?s)PhysioNet.*allow_remote=true"):
        ChatClient(ChatSettings(base_url="https://api.example.com/v1")).check()
    allowed = ChatClient(ChatSettings(base_url="https://api.example.com/v1", allow_remote=True))
    with pytest.raises(UserError, match="environment variable OPENAI_API_KEY"):
        allowed.check()
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    allowed.check()
    ChatClient(ChatSettings(base_url="http://127.0.0.1:8000/v1")).check()
    assert check_address("http://[::1]:8000/v1", False) and not check_address("http://8.8.8.8/v1", True)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000", "ftp://localhost/v1", "http://", "http://user:sk-1@localhost/v1", "http://localhost:x/v1",
        "http://localhost/v1?api_key=sk-1", "http://[::1/v1", "",
    ],
)  # fmt: skip
def test_what_is_no_address_is_a_fault_of_the_recipe(url):
    with pytest.raises(SettingsError, match="base_url"):
        ChatSettings(base_url=url)


def test_backslashes_and_spaces_do_not_hide_a_host():
    for url in (r"http://127.0.0.1\@api.example.com/v1", "http://127.0.0.1 .example.com/v1", "http://exa\nmple.com"):
        with pytest.raises((SettingsError, UserError)):
            ChatClient(ChatSettings(base_url=url)).check()

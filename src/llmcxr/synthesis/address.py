"""Where reports may be sent: to this machine and its own network, and further only where the user says so.

Reports under a data use agreement (MIMIC-CXR, by PhysioNet's) must not reach a third party. Whether an address is near
is decided by what it is, not by what a public name server answers today: a public name is far, also where it leads to
a private address now.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

from llmcxr.foundation.errors import UserError

# RFC 1918, loopback, and IPv6's unique local and link-local addresses: nothing of these is routed on the internet.
_NEAR = [
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10")
]
# Ends of names that no public name server may answer (RFC 2606, 6762, 8375, and ICANN's .internal).
_NEAR_NAMES = (".localhost", ".local", ".internal", ".home.arpa")


def split_address(base_url: str) -> SplitResult:
    """The parts of a server's base URL. `UserError` where it is none, or holds what belongs elsewhere (keys)."""
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"chat.base_url: {base_url!r} is no address: {error}. Give e.g. {EXAMPLE}.") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            "chat.base_url holds more than an address (a user, a password or a query). Keys come from the environment "
            "only (chat.key_variable names the variable): recipes are kept and passed on."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"chat.base_url: {base_url!r} should be http:// or https:// with a host, e.g. {EXAMPLE}.")
    return parts


EXAMPLE = "http://localhost:8000/v1"


def is_near(host: str, port: int | None = None) -> bool:
    """Whether a host is this machine or one of a private network, beyond doubt.

    An address of such a network is. A name is where no public name server may know it (one word, "localhost" or
    ".internal", ".local", ".home.arpa") and every address to which it leads is near. All other names are far.
    """
    text = host.rstrip(".").lower()
    if (address := _address(text)) is not None:
        return _is_near_address(address)
    if "." in text and not text.endswith(_NEAR_NAMES):
        return False
    try:
        found = socket.getaddrinfo(text, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return text == "localhost" or text.endswith(".localhost")  # loopback by RFC 6761
    addresses = [_address(str(entry[4][0])) for entry in found]
    return bool(addresses) and all(a is not None and _is_near_address(a) for a in addresses)


def check_address(base_url: str, allow_remote: bool) -> bool:
    """Whether the server is near. `UserError` where it is not and `allow_remote` is not set, and why that matters."""
    parts = split_address(base_url)
    near = is_near(parts.hostname or "", parts.port)
    if not near and not allow_remote:
        raise UserError(
            f"chat.base_url leads to {parts.hostname}, which is not this machine, nor by an address of a private "
            "network, so reports would leave it. Reports of credentialed data (MIMIC-CXR and others of PhysioNet) must "
            "not be sent to third parties, online services of language models included: PhysioNet's terms of use and "
            "its note on such services say what is allowed. Use a server of your own (by its private address, e.g. "
            f"{EXAMPLE}), or, where your reports may be sent there, set chat.allow_remote=true."
        )
    return near


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_near_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address.version == network.version and address in network for network in _NEAR)

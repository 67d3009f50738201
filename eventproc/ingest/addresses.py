"""Who sent a request, when proxies may stand between."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

Headers = Iterable[tuple[bytes, bytes]]


def client_address(peer: str, headers: Headers, trusted_proxies: int) -> str:
    """The n-th X-Forwarded-For entry from the right, which the outermost trusted proxy has written.

    What stands left of it is the sender's own word. The peer itself when there are no trusted proxies, or
    fewer entries than those write, or something that is no address.
    """
    if not trusted_proxies:
        return peer
    lines = [value for name, value in headers if name == b"x-forwarded-for"]
    entries = b",".join(lines).split(b",") if lines else []
    if len(entries) < trusted_proxies:
        return peer
    return _normal(entries[-trusted_proxies].strip().decode("ascii", "replace")) or peer


def _normal(text: str) -> str:
    """One spelling for each address; "" for what is none. A port is left out."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return ""
        return str(address.ipv4_mapped or address)
    return str(address)

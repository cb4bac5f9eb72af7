"""Which addresses and host names lie inside somebody's network: of this machine, its cloud, its hospital."""

from __future__ import annotations

import ipaddress
import re

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Global by Python's tables, and yet the inside of a cloud: Azure's wire server, Oracle's metadata.
_INSIDE = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
# RFC 6761, 6762, 8375, ICANN's private-use name, and what networks use beside them.
_INNER_ZONES = frozenset(
    {
        "localhost",
        "local",
        "internal",
        "localdomain",
        "home.arpa",
        "intranet",
        "private",
        "corp",
        "home",
        "lan",
    }
)


def address_of(host: str) -> IPAddress | None:
    """The address that a host is, None for a name. Brackets and zones of IPv6 are understood."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the open internet, and so does each address that is wrapped in it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64_LOCAL or address in _COMPATIBLE:
            return False
        if address.is_site_local or address.teredo is not None:
            return False
        wrapped = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(wrapped)
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified)
        and not any(address in network for network in _INSIDE)
    )


def is_inner_name(host: str) -> bool:
    """Whether a name means something only inside a network: one label, or a zone such as `.internal`."""
    labels = host.lower().rstrip(".").split(".")
    return len(labels) < 2 or labels[-1] in _INNER_ZONES or ".".join(labels[-2:]) in _INNER_ZONES


def is_disguised_number(host: str) -> bool:
    """Whether a host ends in a number without being an address in full: `127.1`, `2130706433`, `0x7f.1`.

    The system's resolver reads these as IPv4 addresses, in octal too (`0177.0.0.1`).
    """
    return address_of(host) is None and bool(_NUMBER.fullmatch(host.lower().rstrip(".").split(".")[-1]))

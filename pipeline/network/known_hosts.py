"""Whom the configuration names: these hosts may have any address, all others only public ones.

Hospitals run on private networks, so the FHIR server may be anywhere. But what a server's answer points to
(a file, a redirect, a page, a token endpoint) must not lead us to a neighbour of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import httpx

from pipeline.auth.origins import DEFAULT_PORTS, is_loopback, origin, printable
from pipeline.errors import ExportError, ServerRefused
from pipeline.network.addresses import IPAddress, address_of, is_disguised_number, is_inner_name, is_public


@dataclass(frozen=True)
class KnownHosts:
    """`hosts` are trusted on any port, `doors` are (host, port). Names are in lower case, IPv6 bare."""

    hosts: frozenset[str] = frozenset()
    doors: frozenset[tuple[str, int]] = frozenset()
    this_machine: bool = False
    """Whether every loopback address is trusted: the FHIR server itself runs here."""

    @classmethod
    def of(cls, urls: Iterable[str], origins: Iterable[str] = ()) -> KnownHosts:
        """The hosts of `urls` on any port, and `origins` on theirs. Raises ConfigError for what is no URL."""
        named = [origin(each) for each in urls]
        hosts, doors = map(httpx.URL, named), map(_door, map(httpx.URL, origins))
        return cls(
            frozenset(_bare(each) for each in hosts),
            frozenset(doors),
            any(map(is_loopback, named)),
        )

    def with_doors(self, urls: Iterable[str]) -> KnownHosts:
        """These too, on their own ports; nothing else of their machines. Raises ConfigError for no URL."""
        return replace(self, doors=self.doors | {_door(httpx.URL(origin(each))) for each in urls})

    def names(self, host: str, port: int) -> bool:
        """Whether the configuration names this host."""
        host = _one_spelling(host)
        return (
            host in self.hosts
            or (host, port) in self.doors
            or (self.this_machine and is_loopback(f"https://{f'[{host}]' if ':' in host else host}"))
        )

    def check(self, url: str | httpx.URL, error: type[ExportError] = ServerRefused) -> None:
        """Raise `error` for a URL that shows by itself, without any look-up, that it leads inside."""
        origin(url, error=error)
        host, port = _door(httpx.URL(url))
        if self.names(host, port):
            return
        address = address_of(host)
        if address is not None:
            self.check_addresses(host, port, [address], error)
        elif is_disguised_number(host):
            raise error(
                f"{printable(url)} has an address in place of a name, written so that it is not seen",
                "Report it to the server's operator.",
            )
        elif is_inner_name(host):
            raise _inside(f"{host}:{port} is a name of an inner network", host, port, error)

    def check_addresses(
        self, host: str, port: int, addresses: Iterable[IPAddress], error: type[ExportError] = ServerRefused
    ) -> None:
        """Raise `error` when any address of a host that the configuration does not name is not public."""
        if self.names(host, port):
            return
        for each in addresses:
            if not is_public(each):
                raise _inside(f"{host}:{port} is at {each}, inside a network", host, port, error)


def _door(url: httpx.URL) -> tuple[str, int]:
    return _bare(url), url.port or DEFAULT_PORTS[url.scheme]


def _bare(url: httpx.URL) -> str:
    return _one_spelling(url.raw_host.decode("ascii"))


def _one_spelling(host: str) -> str:
    address = address_of(host)
    return host if address is None else str(address)


def _inside(what: str, host: str, port: int, error: type[ExportError]) -> ExportError:
    named = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return error(
        f"{what}, and the configuration does not name it: nothing is asked there",
        f"If that host is right, add {named} to downloads.allow_hosts; a token endpoint is named by "
        "auth.token_url, or for Entra by auth.authority.",
    )

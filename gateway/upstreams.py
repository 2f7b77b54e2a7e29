"""Which URLs may be called in somebody else's name, and at which addresses: the guard against SSRF, without any I/O.

Nothing may be called that is not listed. What is listed by a name that the whole internet resolves must have public
addresses only, so that whoever holds that name can't point it at our own network; a name that only our network knows
(`app`, `ocr.internal`) and an address are listed as what they are. `processors.upstream` asks again when it connects.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# No user info, no fragment, no backslash, no white space, nothing beyond ASCII: two readers of such a URL can differ
# about its host, and one of them is the guard.
_URL: Final = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[^\[\]/?#:@]+)(?::([0-9]{1,5}))?(/[^?#]*)?(\?[^#]*)?", re.I)
_PLAIN: Final = re.compile(r"[!-\[\]-~]{1,8192}", re.ASCII)
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*", re.ASCII)
_PORTS: Final = {"http": 80, "https": 443}
# Names that no public name server answers: RFC 6761, RFC 6762, RFC 8375, ICANN's `internal`; `svc` is a cluster's.
_LOCAL_SUFFIXES: Final = (".local", ".localhost", ".internal", ".home.arpa", ".svc")


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# What belongs to somebody's own network, and can be meant by a local name.
_OWN: Final = _networks(
    "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7"
)
# `ipaddress.is_global` is not enough: Python 3.11 takes NAT64, 6to4, multicast and newer reservations for global.
_NOT_PUBLIC: Final = (
    *_OWN,
    *_networks(
        # this network, link-local (a cloud's metadata), protocols, documentation, 6to4 relays, benchmarks, multicast
        *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        # a public address by its look, behind which Azure serves each of its machines what only that one may know
        "168.63.129.16/32",
        # protocols with Teredo, documentation
        *("2001::/23", "2001:db8::/32", "3fff::/20"),
    ),
)
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")


class Refused(ValueError):
    """A URL that may not be called. `code` is stable, `detail` says why and what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart: the host in lower case and without brackets, the path as it was written."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""

    @classmethod
    def parse(cls, url: str) -> Target:
        """Raises `Refused` for what is no http or https URL, or could be read in two ways."""
        if url.partition(":")[0].lower() not in _PORTS:
            raise Refused(
                "upstream_not_http",
                f"{url[:200]!r} is not called: only URLs that begin with http:// or https:// are.",
            )
        match = _URL.fullmatch(url) if _PLAIN.fullmatch(url) else None
        if match is None:
            raise Refused(
                "upstream_bad_url",
                f"{url[:200]!r} can't be called; a URL looks like https://host:port/path, in ASCII, without a user, a"
                " fragment or a backslash.",
            )
        scheme, host, port, path, query = match.groups(default="")
        scheme, host = scheme.lower(), _checked_host(host.lower().strip("[]"), "[" in host)
        number = int(port) if port else _PORTS[scheme]
        if not 1 <= number <= 65535:
            raise Refused("upstream_bad_url", f"The port {number} can't be; it is a number from 1 to 65535.")
        # `..;x` too: some servers drop a segment's parameters (RFC 3986, 3.3) before they follow the dots.
        if {".", ".."} & {segment.partition(";")[0] for segment in re.split(r"[/\\]", unquote(path))}:
            raise Refused("upstream_bad_url", f"The path {path[:200]!r} has dot segments; write where it leads to.")
        return cls(scheme, host, number, path or "/", query)

    @property
    def origin(self) -> tuple[str, str, int]:
        """What two URLs of one origin have in common."""
        return self.scheme, self.host, self.port


def _checked_host(host: str, in_brackets: bool) -> str:
    if in_brackets or host.rpartition(".")[2].isdigit() or host.rpartition(".")[2].startswith("0x"):
        # [spec] A host whose last label is a number is an IPv4 address (WHATWG URL, "ends in a number"); short and
        # octal ways to write one are refused.
        try:
            return str(ipaddress.IPv6Address(host) if in_brackets else ipaddress.IPv4Address(host))
        except ValueError:
            raise Refused("upstream_bad_url", f"{host[:100]!r} is no way to write an address here.") from None
    if _NAME.fullmatch(host) is None:
        raise Refused("upstream_bad_url", f"{host[:100]!r} is no host name; write other scripts in punycode (xn--...).")
    return host


@dataclass(frozen=True, slots=True)
class Listed:
    """A listed upstream: all URLs that begin with it, at a `/`; `*` stands for any host, `*.` for any below a name."""

    target: Target
    wildcard: bool

    @classmethod
    def parse(cls, entry: str) -> Listed:
        """Raises `Refused`."""
        wildcard = "://*" in entry
        plain = re.sub(r"://\*(\.?)", lambda match: "://" if match[1] else "://any", entry, count=1)
        target = Target.parse(plain)
        if wildcard and "://*." not in entry:
            target = Target(target.scheme, "", target.port, target.path)
        if target.query:
            raise Refused("upstream_bad_url", f"{entry!r} has a query; list the address before it.")
        return cls(target, wildcard)

    def covers(self, target: Target) -> bool:
        """Whether a URL is among those that are meant."""
        mine = self.target
        if (mine.scheme, mine.port) != (target.scheme, target.port):
            return False
        below = self.wildcard and (not mine.host or target.host.endswith(f".{mine.host}"))
        host = below or (mine.host == target.host and not self.wildcard)
        return host and (target.path == mine.path or target.path.startswith(mine.path.rstrip("/") + "/"))


class Upstreams:
    """All that may be called: listed URLs, and networks that may be connected to though they are not public."""

    def __init__(self, entries: Iterable[str] = (), networks: Iterable[str] = ()) -> None:
        """Raises `Refused` for an entry that is none, and `ValueError` for a network that is none."""
        self._listed = tuple(Listed.parse(entry) for entry in entries)
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def check(self, url: str) -> Target:
        """Raises `Refused` for a URL that is not listed, or whose host is an address that is not for us to call."""
        target = Target.parse(url)
        covering = [listed for listed in self._listed if listed.covers(target)]
        if not covering:
            raise Refused(
                "upstream_not_allowed",
                f"{target.scheme}://{target.host}:{target.port}{target.path[:200]} is not among the upstreams that may"
                " be called; the operator lists them in OUTLAST_UPSTREAMS.",
            )
        if all(listed.wildcard for listed in covering):
            self.check_host(target.host)
        return target

    def lists(self, target: Target) -> bool:
        """Whether a URL is listed."""
        return any(listed.covers(target) for listed in self._listed)

    def check_host(self, host: str) -> None:
        """Raises `Refused` for a host that is an address, and one that may not be connected to."""
        if _address(host) is not None:
            self.check_addresses(host, [host])

    def check_addresses(self, host: str, addresses: Iterable[str]) -> None:
        """Ask for all addresses that a host's name stands for, before any of them is connected to. Raises `Refused`."""
        for text in addresses:
            address = ipaddress.ip_address(text.partition("%")[0])
            if not self._may_connect(host, address):
                raise Refused(
                    "upstream_private",
                    f"{host} stands for {address}, which is not a public address; if it is meant, the operator adds its"
                    " network to OUTLAST_UPSTREAM_NETWORKS.",
                )

    def _may_connect(self, host: str, address: Address) -> bool:
        inner = embedded_v4(address)
        if any(one in network for network in self._networks for one in (address, inner) if one is not None):
            return True
        if inner is not None:
            address = inner
        return is_public(address) or (is_local_name(host) and any(address in network for network in _OWN))


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_local_name(host: str) -> bool:
    """Whether no public name server answers for this name, so that only its own network can say what it means."""
    return _address(host) is None and ("." not in host or host.endswith(_LOCAL_SUFFIXES))


def embedded_v4(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, compatible, NAT64 or 6to4."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (address in _V4_COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could have this address."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_V6:
        return False
    return not any(address in network for network in _NOT_PUBLIC if network.version == address.version)

"""How a request gets to a server: through which proxy, by which certificates, and how far along a redirect."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from blendkit.credentials import Address, hold, in_urls
from blendkit.errors import NoInputError, UsageError

# Redirects that repeat the request as it was; by 302 and 303 it would become a GET.
KEPT_METHOD = (301, 307, 308)
PERMANENT = (301, 308)
MOST_REDIRECTS = 5
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True)
class Proxy:
    """`name` is its address without credentials, `authorization` what it is asked with."""

    name: str
    url: str
    authorization: str | None

    def arguments(self) -> dict[str, Any]:
        """For a request of aiohttp's."""
        from aiohttp import BasicAuth

        auth = BasicAuth.decode(self.authorization, encoding="utf-8") if self.authorization else None
        return {"proxy": self.url, "proxy_auth": auth}


def proxy_for(url: str) -> Proxy | None:
    """The proxy that the environment names for a URL: http_proxy or https_proxy by its scheme, else all_proxy, unless no_proxy has its host.

    The names count in lower and upper case. A loopback address is like any other, as it is for curl.

    Raises:
        UsageError: it is no HTTP proxy; its credentials are not shown.
    """
    parts = urlsplit(url)
    proxies = getproxies_environment()
    kind = parts.scheme if parts.scheme in proxies else "all"
    given = proxies.get(kind)
    if not given or proxy_bypass_environment(parts.netloc.rpartition("@")[2], proxies):
        return None
    try:
        address = Address.parsed(given if "://" in given else f"http://{given}", f"{kind}_proxy")
    except UsageError:
        whole = given if "://" in given else f"http://{given}"
        raise UsageError(f"{kind}_proxy {in_urls(whole)}: expected http://HOST:PORT; proxies of other kinds cannot be used") from None
    hold(address.secrets)
    return Proxy(address.name, address.url, address.authorization)


def certificates() -> Any:
    """What aiohttp's `ssl` is to be: the certificates that SSL_CERT_FILE and SSL_CERT_DIR name, or (True) the system's.

    Raises:
        NoInputError: a file or folder of that name is not there, or holds no certificate.
    """
    named = {name: os.environ[name] for name in CERTIFICATES if os.environ.get(name)}
    if not named:
        return True
    import ssl

    context = ssl.create_default_context()
    for name, path in named.items():
        try:
            if name == "SSL_CERT_DIR":
                # Several, as OpenSSL reads them.
                for folder in filter(None, path.split(os.pathsep)):
                    os.listdir(folder)
                    context.load_verify_locations(capath=folder)
            else:
                context.load_verify_locations(cafile=path)
        except ssl.SSLError as error:
            raise NoInputError(f"{name} {path}: no certificates in PEM form: {error.reason or error}") from error
        except OSError as error:
            raise NoInputError(f"{name} {path}: {error.strerror or error}") from error
    return context


def followed(url: str, place: str | None) -> str | None:
    """Where a redirect leads to, if that is the same server: the same host and port, or from http to https by their default ports. None otherwise."""
    from yarl import URL

    try:
        here = URL(url)
        there = here.join(URL(place or ""))
        upgraded = (here.scheme, here.port, there.scheme, there.port) == ("http", 80, "https", 443)
        same = there.host == here.host and ((there.scheme, there.port) == (here.scheme, here.port) or upgraded)
        # A user's name in it would be a credential that nobody gave us.
        return str(there.with_user(None)) if place and same else None
    except ValueError:
        return None

"""Credentials: taken out of a URL before it names anything, and masked in every word that leaves.

Nothing here reads a netrc file. Proxies of the environment are asked by the credentials in their own URLs.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode, urlsplit

from blendkit.errors import UsageError

MASK = "***"
# So many characters of a secret in a row are masked; a shorter secret could be a word of the message.
LEAST = 8
# A secret of so many characters is masked in an answer, too: shorter ones (`lm-studio`) may be meant.
LEAST_IN_DATA = 16
KEYS = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
URLS = ("OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
# How parameters that hold a secret end, and the ones that surely hold none.
SECRET_NAME = r"(?:key|token|secret|passwd|password|pwd|auth|authorization|sig|signature|credentials?|code|session)"
PLAIN_PARAMETERS = ("api-version", "version", "deployment", "model", "region")
_SECRET_NAMED = re.compile(rf"(?:{SECRET_NAME}|cookie)$", re.IGNORECASE)
# What people paste behind the address of a server, longest first.
ROUTES = ("/chat/completions", "/completions")

_IN_URL = re.compile(r"(?<=://)[^\s\"'<>]*@")
_IN_QUERY = re.compile(rf"([?&;][^\s\"'<>=&;#]*{SECRET_NAME}=)[^\s\"'<>&#]+", re.IGNORECASE)
# What a secret may be split by: white space, and what shows nothing.
_BLANK = re.compile(r"[\s\x00-\x1f\x7f\xad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|\\[abfnrtv0\"'\\/]|&#x?[0-9A-Fa-f]{1,6};|&[a-z]{2,6};")
_SHORT_ESCAPES = dict(zip("abfnrtv0", "\a\b\f\n\r\t\v\0", strict=True))
ESCAPED_TIMES = 3


@dataclass(frozen=True)
class Address:
    """Where a server is: `url` is what requests go to, `name` the same without credentials, for keys of a cache and for people.

    Of the query, `name` shows what surely is no secret, leaves out what is named like one, and has a digest of the rest.
    """

    url: str
    name: str
    authorization: str | None
    secrets: tuple[str, ...]

    @classmethod
    def parsed(cls, text: str, flag: str = "--base-url") -> Address:
        """The address; blanks around it and the route of a request at the end of its path are left out.

        Raises:
            UsageError: it is no address of a server; the message does not quote a credential.
        """
        text = text.strip()
        try:
            parts = urlsplit(text)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not _BLANK.search(text)
        except ValueError:
            fine = False
        if not fine:
            raise UsageError(f"{flag} {_expected(text)}")
        user, mark, host = parts.netloc.rpartition("@")
        name, _, password = (unquote(part) for part in user.partition(":"))
        # A name beside a password is none; alone, it is the key.
        secrets = [password] if len(password) >= LEAST else [password, name]
        authorization = None
        if mark:
            code = base64.b64encode(f"{name}:{password}".encode(errors="surrogateescape")).decode()
            authorization = f"Basic {code}"
            secrets.append(code)
        shown = []
        for parameter, value in parse_qsl(parts.query, keep_blank_values=True):
            if named_like_a_secret(parameter):
                secrets.append(value)
            elif parameter.lower() in PLAIN_PARAMETERS:
                shown.append((parameter, value))
            else:
                secrets += [value] if len(value) >= LEAST_IN_DATA else []
                shown.append((parameter, hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:16]))
        path = parts.path.rstrip("/")
        route = next((route for route in ROUTES if path.endswith(route)), "")
        place = f"{parts.scheme}://{host}{path.removesuffix(route).rstrip('/')}"
        return cls(
            url=place + (f"?{parts.query}" if parts.query else ""),
            name=place + (f"?{urlencode(shown)}" if shown else ""),
            authorization=authorization,
            secrets=tuple(secret for secret in secrets if secret),
        )

    def of(self, route: str) -> str:
        """The URL of a route below it; the query stays at the end."""
        return _below(self.url, route)

    def named(self, route: str) -> str:
        """The same without credentials, for people."""
        return _below(self.name, route)


class Secrets:
    """What must not leave, and how to find it in foreign words.

    A secret is found whole or in any piece of `LEAST` characters: as it is, in other letter case, split by white space,
    escaped for URLs, JSON or HTML (also several times over), or in base64. A shorter one is masked only where a word
    before it says that a key follows.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._all = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        long = [secret for secret in self._all if len(_BLANK.sub("", secret)) >= LEAST]
        self._pieces = {piece for secret in long for variant in _variants(secret) for piece in _pieces(_BLANK.sub("", variant).lower())}
        short = "|".join(re.escape(secret) for secret in self._all if secret not in long)
        before = rf"(?:\b(?:bearer|basic)\s+|(?:{SECRET_NAME}|provided)[\"']?\s*[:=]\s*[\"']?)"
        self._short = re.compile(f"({before})(?:{short})(?!\\w)", re.IGNORECASE) if short else None
        self._whole = [variant for secret in self._all if len(secret) >= LEAST_IN_DATA for variant in _variants(secret)]

    @classmethod
    def of_process(cls, environment: Mapping[str, str] = os.environ, arguments: Sequence[str] | None = None) -> Secrets:
        """Those of the environment, of the command line's URLs and headers, and those that a part of the process holds."""
        found = list(_held)
        found += [environment[name].strip() for name in KEYS if environment.get(name)]
        urls = [environment[name] for name in URLS if environment.get(name)]
        arguments = sys.argv[1:] if arguments is None else arguments
        for argument, before in zip(arguments, ["", *arguments], strict=False):
            flag, mark, value = argument.partition("=")
            urls += [text for text in (argument, value if mark and flag.startswith("-") else "") if "://" in text]
            # In openai:MODEL@URL the address begins behind the model.
            urls += [f"http{place}" for place in argument.split("@http")[1:2]]
            if header := _secret_header(argument, before):
                found.append(header[1].strip())
        for url in urls:
            try:
                found += Address.parsed(url).secrets
            except UsageError:
                # It leads nowhere, but what stands before the @ was meant to be secret.
                found += re.split("[:@/]", url.partition("://")[2].rpartition("@")[0])
        return cls(found)

    def masked(self, text: str) -> str:
        """A message without them, and without the credentials of any URL in it."""
        text = in_urls(text)
        if self._short is not None:
            text = self._short.sub(rf"\g<1>{MASK}", text)
        if not self._pieces:
            return text
        hidden = bytearray(len(text))
        view = [(sign, place, place + 1) for place, sign in enumerate(text)]
        for _ in range(ESCAPED_TIMES + 1):
            visible = [(sign.lower(), start, end) for sign, start, end in view if not _BLANK.match(sign)]
            signs = "".join(sign[:1] for sign, _, _ in visible)
            for place in range(len(signs) - LEAST + 1):
                if signs[place : place + LEAST] in self._pieces:
                    start, end = visible[place][1], visible[place + LEAST - 1][2]
                    hidden[start:end] = b"\1" * (end - start)
            unescaped = _unescaped(view)
            if len(unescaped) == len(view):
                break
            view = unescaped
        parts = groupby(zip(hidden, text, strict=True), key=lambda pair: pair[0])
        return "".join(MASK if mark else "".join(sign for _, sign in part) for mark, part in parts)

    def masked_whole(self, text: str) -> str:
        """Data without those of them that are long enough never to be meant, each in one piece."""
        for variant in self._whole:
            text = text.replace(variant, MASK)
        return text


# A dict for its order. What one part of the process holds, no other may say: a gateway may quote the key of another model.
_held: dict[str, None] = {}
_of_held = (0, Secrets([]))


def hold(secrets: Iterable[str]) -> None:
    """From now on, all of these are masked in everything that leaves this process."""
    _held.update(dict.fromkeys(secret for secret in secrets if secret))


def held() -> Secrets:
    """All that is held by now."""
    global _of_held
    known = list(_held)
    if _of_held[0] != len(known):
        _of_held = (len(known), Secrets(known))
    return _of_held[1]


def named_like_a_secret(name: str) -> bool:
    """Whether a parameter or header of this name holds a secret, such as `api-key` or `Authorization`."""
    return _SECRET_NAMED.search(name.strip()) is not None


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be kept."""
    secrets = Secrets.of_process(arguments=arguments)
    found = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        header = _secret_header(argument, before)
        found.append(secrets.masked_whole(in_urls(header[0] + MASK if header else argument)))
    return found


def _secret_header(argument: str, before: str) -> tuple[str, str] | None:
    """What stands before the value, and the value, where an argument is `--extra-header NAME:VALUE` with a secret in it."""
    lead, header = ("--extra-header=", argument.partition("=")[2]) if argument.startswith("--extra-header=") else ("", argument)
    name, mark, value = header.partition(":")
    if not mark or not (lead or before == "--extra-header") or not named_like_a_secret(name) or value.strip().startswith("env:"):
        return None
    return f"{lead}{name}:", value


def _below(url: str, route: str) -> str:
    place, mark, query = url.partition("?")
    return f"{place}/{route}{mark}{query}"


def _expected(text: str) -> str:
    """What is wrong with an address, without its credentials."""
    form = "expected http://HOST:PORT/v1 or the like"
    if "://" in text:
        return f"{in_urls(text)}: {form}; a password's special characters are written as %XX"
    whole = in_urls(f"http://{text}")
    return f"{whole.removeprefix('http://')}: {form}; did you mean {whole}?" if text else f"is empty: {form}"


def in_urls(text: str) -> str:
    """The text without user names, passwords and parameters named like secrets in its URLs."""
    return _IN_QUERY.sub(rf"\g<1>{MASK}", _IN_URL.sub(f"{MASK}@", text))


def _variants(secret: str) -> list[str]:
    """The secret as it is, by its bytes and UTF-16 units (which escapes name), in a URL, and in base64 at each place that it can have there."""
    data = secret.encode(errors="surrogatepass")
    units = secret.encode("utf-16-be", "surrogatepass")
    found = [secret, data.decode("latin-1"), "".join(chr(int.from_bytes(units[place : place + 2])) for place in range(0, len(units), 2))]
    found += [quote_plus(data), quote(data, safe="")]
    for shift in range(3):
        code = base64.b64encode(bytes(shift) + data).decode()
        # Signs that also hold bits of what stands beside the secret are left out.
        inner = code[(shift * 8 + 5) // 6 : (shift + len(data)) * 8 // 6]
        found += [inner, inner.translate(str.maketrans("+/", "-_"))]
    return list(dict.fromkeys(found))


def _pieces(text: str) -> Iterable[str]:
    return (text[place : place + LEAST] for place in range(len(text) - LEAST + 1))


def _unescaped(view: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Signs with their places in the text, each escape made the sign that it stands for."""
    found: list[tuple[str, int, int]] = []
    last = 0
    for match in _ESCAPE.finditer("".join(sign for sign, _, _ in view)):
        found += view[last : match.start()]
        found.append((_sign(match[0]), view[match.start()][1], view[match.end() - 1][2]))
        last = match.end()
    return found + view[last:]


def _sign(escape: str) -> str:
    if escape[0] == "&":
        # A name that HTML does not have stays as it is; its first sign stands for it.
        return html.unescape(escape)[:1] or " "
    if escape[0] == "%" or escape[1] in "ux":
        return chr(int(escape.lstrip("%\\ux"), 16))
    return _SHORT_ESCAPES.get(escape[1], escape[1])

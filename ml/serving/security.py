"""Who may ask for what and how often: API keys, scopes, rate limits. Keys are kept as sha256 only."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ml.serving.problems import ProblemError
from ml.serving.settings import ApiSettings

SCOPES = ("predict", "feedback", "admin")
NAME = r"[\w.-]{1,64}"
LINE = re.compile(rf"^(?P<name>{NAME})\s+(?P<scopes>[a-z,]+)\s+(?P<digest>[0-9a-f]{{64}})$")

#: Answers are data, never pages to be framed, guessed at or kept.
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class KeyFileError(ValueError):
    """A line of the keys is wrong; the message says which, never what key it holds."""


@dataclass
class Key:
    """One caller. ``digest`` is the sha256 of the key, which has 256 random bits, so that no salt is needed."""

    name: str
    scopes: frozenset[str]
    digest: bytes
    tokens: float
    filled_at: float = field(default_factory=time.monotonic)


def new_key(name: str, scopes: str) -> tuple[str, str]:
    """A new key and the line to put into HOUSING_API_KEYS. Raises KeyFileError for its name or unknown scopes."""
    if not re.fullmatch(NAME, name):
        raise KeyFileError(f"{name!r} cannot name a key; use 1 to 64 letters, digits, points, - and _, without blanks")
    scopes = scopes.replace(" ", "")
    if unknown := sorted({*scopes.split(",")} - {*SCOPES}):
        raise KeyFileError(f"unknown scope {unknown[0] or '(none)'}; scopes are {', '.join(SCOPES)}")
    key = secrets.token_urlsafe(32)
    line = f"{name} {scopes} {hashlib.sha256(key.encode()).hexdigest()}"
    return key, line


def _parsed(line: str, place: str, burst: int) -> Key:
    found = LINE.match(line)
    unknown = sorted({*found["scopes"].split(",")} - {*SCOPES}) if found else []
    if not found or unknown:
        raise KeyFileError(
            f"{place} is not `name scope,scope sha256`"
            + (f": unknown scope {', '.join(unknown)}" if unknown else "")
            + f"; scopes are {', '.join(SCOPES)}"
        )
    return Key(found["name"], frozenset(found["scopes"].split(",")), bytes.fromhex(found["digest"]), burst)


def _keys(text: str, source: str, burst: int) -> list[Key]:
    """Keys of one source; lines are told by their number there."""
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    return [_parsed(line, f"line {i} of {source}", burst) for i, line in lines if line and not line.startswith("#")]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{file} is no UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None
    except OSError as error:
        said = f"HOUSING_API_KEYS_FILE is {file}, which cannot be read ({error.strerror})"
        raise KeyFileError(f"{said}; name a file with one line for each key") from None


class Guard:
    """Checks keys and counts requests. Without keys everybody on this machine may do everything."""

    def __init__(self, settings: ApiSettings) -> None:
        self._rate, self._burst = settings.rate_per_s, settings.rate_burst
        self._keys = _keys(settings.keys.replace(";", "\n"), "HOUSING_API_KEYS", self._burst)
        if settings.keys_file:
            self._keys += _keys(_text(settings.keys_file), str(settings.keys_file), self._burst)
        if settings.has_keys and not self._keys:
            raise KeyFileError("the API keys hold no key; make one with: housing serve --new-key NAME")

    def caller(self, headers: Mapping[str, str], scope: str | None) -> tuple[str, Key | None]:
        """Name of the caller, and the key it needs for ``scope``, if any. Raises ProblemError 401."""
        if not self._keys or scope is None:
            return "local" if not self._keys else "anonymous", None
        given = headers.get("x-api-key", "")
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given = token.strip()
        digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        # every key is compared in constant time, whichever fits
        fits = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not fits:
            raise ProblemError(
                401,
                "send a valid key as `Authorization: Bearer …` or `X-API-Key`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return fits[0].name, fits[0]

    def admit(self, key: Key | None, scope: str | None) -> None:
        """Count the request. Raises ProblemError 403 or 429."""
        if key is None:
            return
        self._count(key)
        if scope not in key.scopes:
            raise ProblemError(403, f"the key {key.name} lacks the scope {scope}")

    def _count(self, key: Key) -> None:
        now = time.monotonic()
        key.tokens = min(self._burst, key.tokens + (now - key.filled_at) * self._rate)
        key.filled_at = now
        if key.tokens < 1:
            wait = math.ceil((1 - key.tokens) / self._rate)
            raise ProblemError(
                429,
                f"more than {self._rate:g} requests a second; try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )
        key.tokens -= 1

"""Tells people what needs them: events become messages to a log file, a webhook and a mailbox, each once.

What happened is read from the published snapshot (``collect``); runs of the Dagster instance are read in
``dagster_project/alerting.py``, which also says when delivery happens. Whether something is bad is decided in SQL.

Every event waits in an outbox (SQLite below ``HOUSING_HOME/alerts``) for each channel until it was delivered there.
Nothing here raises because of an endpoint: what could not be delivered is tried again, ever more rarely.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import smtplib
import sqlite3
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal, Self

import duckdb
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml.settings import Settings, command
from ml.verdicts import CHECKS, DECISION
from ml.words import counted

Kind = Literal[
    "file_quarantined",
    "check_failed",
    "run_failed",
    "retrain_started",
    "champion_moved",
    "version_rejected",
    "needs_human",
]

TITLES: dict[str, str] = {
    "file_quarantined": "File quarantined",
    "check_failed": "Check failed",
    "run_failed": "Run failed",
    "retrain_started": "Retraining started",
    "champion_moved": "Champion moved",
    "version_rejected": "Version rejected",
    "needs_human": "A person is needed",
}

#: A home that existed before alerts did: what is older is not news.
NEWS = timedelta(days=1)
FIRST_RETRY_S, LAST_RETRY_S = 60, 3600
#: Events in one message, and characters of one event: a broken day gives a few messages that one can read.
EVENTS_PER_MESSAGE, LONGEST = 20, 1000


class AlertSettings(BaseSettings):
    """Where alerts go, from ``HOUSING_ALERT_*`` variables or ``.env``. The log file is always written."""

    # an error must not show what was given: it may be a password
    model_config = SettingsConfigDict(
        env_prefix="HOUSING_ALERT_", env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    webhook_url: SecretStr | None = Field(default=None, description="gets a POST of Slack-compatible JSON")
    smtp_host: str | None = None
    smtp_port: int = Field(default=587, ge=1, le=65535)
    smtp_from: str | None = None
    smtp_to: str | None = Field(default=None, description="addresses, separated by commas")
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    smtp_starttls: bool = Field(default=True, description="encrypt; the server's certificate is checked")
    timeout_s: float = Field(default=5.0, gt=0, le=30, description="how long one endpoint may take")

    @field_validator("webhook_url")
    @classmethod
    def _http(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("HOUSING_ALERT_WEBHOOK_URL must start with https:// or http://")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.smtp_host and not (self.smtp_from and self.smtp_to):
            raise ValueError("HOUSING_ALERT_SMTP_HOST needs HOUSING_ALERT_SMTP_FROM and HOUSING_ALERT_SMTP_TO")
        if bool(self.smtp_user) != bool(self.smtp_password):
            raise ValueError("HOUSING_ALERT_SMTP_USER and HOUSING_ALERT_SMTP_PASSWORD go together")
        return self

    @property
    def secrets(self) -> list[str]:
        """What must never be shown."""
        return [s.get_secret_value() for s in (self.webhook_url, self.smtp_password) if s]


@dataclass(frozen=True)
class Event:
    """Something a person should know. ``key`` is the same whenever it is seen again; ``at`` is UTC without zone."""

    key: str
    kind: Kind
    at: datetime
    text: str


@dataclass(frozen=True)
class Delivery:
    """What one call did: events seen for the first time, and by channel how many were sent and still wait."""

    new: tuple[Event, ...] = ()
    sent: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [counted(len(self.new), "new event")]
        parts += [f"{n} sent by {channel}" for channel, n in self.sent.items() if n]
        parts += [f"{n} waiting for {channel}" for channel, n in self.waiting.items() if n]
        return ", ".join(parts)


# What happened ------------------------------------------------------------------------------------------------------

#: Kind, tables that are read, and the query: key, time, text. Levels (checks, decisions) count as they are now.
SOURCES: tuple[tuple[Kind, tuple[str, ...], str], ...] = (
    (
        "file_quarantined",
        ("raw.files",),
        """
        select file || '/' || coalesce(sha256, cast(bytes as varchar), ''), loaded_at, reason
        from raw.files where status = 'quarantined'
        """,
    ),
    (
        "check_failed",
        ("monitoring.checks", "training.model_versions", "published.about"),
        f"""
        select
            concat_ws('/', model_version, check_name, cast(since as varchar)),
            (select max(published_at) from published.about),
            concat(
                check_name, ' of ', model_version, ' fails in ', strftime(month, '%Y-%m'), ', since ',
                strftime(since, '%Y-%m'), ': ', coalesce(cast(round(value, 4) as varchar), 'no value'),
                coalesce(', least allowed ' || cast(lower_limit as varchar), ''),
                coalesce(', most allowed ' || cast(upper_limit as varchar), ''), ', n ', cast(n as varchar)
            )
        from ({CHECKS})
        where status = 'fail' and severity = 'error'
        """,
    ),
    (
        "needs_human",
        ("monitoring.retrain_decisions", "training.model_versions", "published.about"),
        f"""
        select
            cast(decision_id as varchar), (select max(published_at) from published.about),
            concat(model_version, ' in ', strftime(month, '%Y-%m'), ': ', array_to_string(reasons, ', '))
        from ({DECISION})
        where decision = 'needs_human'
        """,
    ),
    (
        "needs_human",
        ("training.promotion_decisions", "training.model_versions"),
        """
        select
            'promote/' || challenger || '/' || champion, min(decided_at),
            challenger || ' waits for `' || getvariable('promote') || '`: ' || max_by(reason, decided_at)
        from training.promotion_decisions
        where
            verdict = 'promote' and mode = 'manual'
            and challenger in (select model_version from training.model_versions where status = 'challenger')
        group by challenger, champion
        """,
    ),
    (
        "champion_moved",
        ("training.model_aliases",),
        """
        select
            concat_ws('/', model_version, cast(moved_at as varchar)), moved_at,
            concat(
                coalesce(model_version, 'nobody'), ' replaced ', coalesce(previous_version, 'nobody'), ', by ', actor,
                ': ', reason
            )
        from training.model_aliases where alias = 'champion'
        """,
    ),
    (
        "version_rejected",
        ("training.model_versions",),
        """
        select model_version, created_at, concat(model_version, ': ', array_to_string(reasons, '; '))
        from training.model_versions where status = 'rejected'
        """,
    ),
)


def collect(settings: Settings) -> list[Event]:
    """Events that the published snapshot tells of, old ones as well: the outbox knows which were sent.

    A source whose tables are not published (an older snapshot) has nothing to tell.
    """
    if not settings.published.exists():
        return []
    found: list[Event] = []
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        tables = {
            f"{schema}.{table}"
            for schema, table in connection.execute(
                "select table_schema, table_name from information_schema.tables"
            ).fetchall()
        }
        connection.execute(f"set variable promote = '{command('promote', settings.dataset)}'")
        for kind, needed, query in SOURCES:
            if tables.issuperset(needed):
                rows = connection.execute(query).fetchall()
                found += [Event(f"{kind}/{key}", kind, at, str(text or "")) for key, at, text in rows]
    return found


# Nothing secret leaves ----------------------------------------------------------------------------------------------

_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|WEBHOOK", re.I)
_PATTERNS = (
    (re.compile(r"\b(\w{1,20}://)[^/\s@'\"]+@"), r"\1***@"),
    (re.compile(r"\b(\w{1,20}://[^\s?'\"]+)\?[^\s'\"]+"), r"\1?***"),
    (re.compile(r"(?i)\b(authorization['\"]?\s*[=:]\s*['\"]?)(?:\w+\s+)?[^\s'\"]+"), r"\1***"),
    (re.compile(r"\b(Bearer)\s+[^\s'\"]{6,}"), r"\1 ***"),
    (
        re.compile(
            r"(?i)(passw(?:or)?d|pwd|secret|token|api[_-]?key|access[_-]?key)(['\"]?\s*[=:]\s*['\"]?)[^\s'\",;&]+"
        ),
        r"\1\2***",
    ),
)


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """The text without credentials: those given, those of this process' environment, and what looks like one."""
    named = [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 6]
    for secret in sorted({*secrets, *named} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


# Channels -----------------------------------------------------------------------------------------------------------

#: Sends one message, or raises.
Send = Callable[[str, list[Event]], None]


def _channels(settings: Settings, alerts: AlertSettings) -> dict[str, Send]:
    out: dict[str, Send] = {"log": lambda dataset, events: _write_log(settings, events)}
    if alerts.webhook_url:
        out["webhook"] = lambda dataset, events: _post(alerts, dataset, events)
    if alerts.smtp_host:
        out["email"] = lambda dataset, events: _mail(alerts, dataset, events)
    return out


def _write_log(settings: Settings, events: Sequence[Event]) -> None:
    with log_file(settings).open("a", encoding="utf-8") as handle:
        handle.writelines(
            f"{e.at.isoformat(timespec='seconds')}Z {e.kind} {' '.join(e.text.split())}\n" for e in events
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST arrives as a GET without its message, and looks delivered."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _post(alerts: AlertSettings, dataset: str, events: list[Event]) -> None:
    assert alerts.webhook_url is not None  # the channel exists
    body = json.dumps({"text": _subject(dataset, events) + "\n" + _body(events, "• ")}).encode()
    request = urllib.request.Request(
        alerts.webhook_url.get_secret_value(), body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=alerts.timeout_s) as answer:
        answer.read(1)


def _mail(alerts: AlertSettings, dataset: str, events: list[Event]) -> None:
    assert alerts.smtp_host and alerts.smtp_from and alerts.smtp_to  # validated
    message = EmailMessage()
    message["Subject"] = _subject(dataset, events)
    message["From"], message["To"] = alerts.smtp_from, alerts.smtp_to
    # the same events are the same message: a mailbox can drop what came twice
    digest = hashlib.sha256("\n".join(e.key for e in events).encode()).hexdigest()[:32]
    message["Message-ID"] = f"<{digest}@housing.invalid>"
    message.set_content(_body(events, "- ") + "\n")
    with smtplib.SMTP(alerts.smtp_host, alerts.smtp_port, timeout=alerts.timeout_s) as server:
        if alerts.smtp_starttls:
            server.starttls(context=ssl.create_default_context())
        if alerts.smtp_user and alerts.smtp_password:
            server.login(alerts.smtp_user, alerts.smtp_password.get_secret_value())
        server.send_message(message)


def _subject(dataset: str, events: Sequence[Event]) -> str:
    more = f" and {len(events) - 1} more" if len(events) > 1 else ""
    return f"[housing {dataset}] {TITLES[events[0].kind]}{more}"


def _body(events: Sequence[Event], bullet: str) -> str:
    return "\n".join(
        f"{bullet}{TITLES[e.kind]}: {' '.join(e.text.split())} ({e.at:%Y-%m-%d %H:%M} UTC)" for e in events
    )


# Delivery -----------------------------------------------------------------------------------------------------------


def deliver(
    settings: Settings,
    events: Sequence[Event],
    *,
    alerts: AlertSettings | None = None,
    budget_s: float = 10.0,
    now: datetime | None = None,
) -> Delivery:
    """Remember new events, then send what is due, in at most about ``budget_s`` seconds.

    An event that a channel could not take is due again after a minute, then two, up to an hour apart, for ever.
    The first call for a home marks what is older than a day as seen.
    """
    alerts = alerts or AlertSettings()
    now = now or datetime.now(UTC).replace(tzinfo=None)
    deadline = time.monotonic() + budget_s
    channels = _channels(settings, alerts)
    with _outbox(settings) as outbox:
        new = outbox.add(
            [
                Event(e.key, e.kind, e.at, redact(e.text[: 9 * LONGEST], alerts.secrets)[:LONGEST])
                for e in {event.key: event for event in events}.values()
            ],
            list(channels),
            now,
        )
        sent = {
            name: _send_due(outbox, name, send, settings, alerts, now=now, deadline=deadline)
            for name, send in channels.items()
        }
        return Delivery(tuple(new), sent, {name: outbox.waiting(name) for name in channels})


def known_keys(settings: Settings) -> set[str]:
    """Keys of events that need not be looked up again."""
    with _outbox(settings) as outbox:
        return outbox.keys()


def log_file(settings: Settings) -> Path:
    """Path of the log of all alerts."""
    return _folder(settings) / f"{settings.dataset}.log"


def _folder(settings: Settings) -> Path:
    return settings.home / "alerts"


def _send_due(
    outbox: _Outbox,
    channel: str,
    send: Send,
    settings: Settings,
    alerts: AlertSettings,
    *,
    now: datetime,
    deadline: float,
) -> int:
    """Send message after message until nothing is due, one fails, or time is up. Returns the events sent."""
    sent = 0
    while (left := deadline - time.monotonic()) > 0:
        due = outbox.claim(channel, now)
        if not due:
            break
        error = _attempt(lambda due=due: send(settings.dataset, due), min(alerts.timeout_s, left))
        if error:
            outbox.failed(channel, due, now, redact(error, alerts.secrets))
            break
        outbox.delivered(channel, due, now)
        sent += len(due)
    return sent


def _attempt(send: Callable[[], None], seconds: float) -> str | None:
    """Why a message could not be sent, or None. Sockets time out by the packet and name look-ups not at all, so the
    attempt has a thread of its own, which is left behind when time is up."""
    outcome: list[str | None] = []

    def work() -> None:
        try:
            send()
            outcome.append(None)
        except Exception as error:  # whatever an endpoint does wrong is the reason why it is tried again
            outcome.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work, name="housing-alert", daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no answer within {seconds:.1f} s"


SCHEMA = """
create table if not exists events (
    key text primary key, kind text not null, at text not null, text text not null, seen_at text not null
);
create table if not exists deliveries (
    key text not null references events, channel text not null, state text not null check (state in
    ('waiting', 'delivered', 'old')), attempts integer not null default 0, next_try text not null, error text,
    delivered_at text, primary key (key, channel)
);
"""


@contextmanager
def _outbox(settings: Settings) -> Iterator[_Outbox]:
    folder = _folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    # autocommit; transactions are begun where several statements belong together
    with closing(sqlite3.connect(folder / f"{settings.dataset}.db", timeout=5, isolation_level=None)) as connection:
        yield _Outbox(connection)


class _Outbox:
    """Events by channel until they are delivered. Several processes may use it at once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        with self._transaction():
            for statement in SCHEMA.split(";"):
                connection.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._connection.execute("rollback")
            raise
        self._connection.execute("commit")

    def keys(self) -> set[str]:
        return {key for (key,) in self._connection.execute("select key from events")}

    def add(self, events: Sequence[Event], channels: Sequence[str], now: datetime) -> list[Event]:
        """Take in what is not known yet; returns what is news."""
        with self._transaction():
            known = self.keys()
            first = self._connection.execute("pragma user_version").fetchone() == (0,)
            self._connection.execute("pragma user_version = 1")
            added = [e for e in events if e.key not in known]
            news = [e for e in added if not (first and e.at < now - NEWS)]
            fresh = {e.key for e in news}
            self._connection.executemany(
                "insert into events values (?, ?, ?, ?, ?)",
                [(e.key, e.kind, _text(e.at), e.text, _text(now)) for e in added],
            )
            self._connection.executemany(
                "insert into deliveries (key, channel, state, next_try) values (?, ?, ?, ?)",
                [(e.key, c, "waiting" if e.key in fresh else "old", _text(now)) for e in added for c in channels],
            )
        return news

    def claim(self, channel: str, now: datetime) -> list[Event]:
        """What is due, oldest first. It is not due for anybody else until this attempt can only have ended."""
        with self._transaction():
            rows = self._connection.execute(
                "select key, kind, at, text from events join deliveries using (key) "
                "where channel = ? and state = 'waiting' and next_try <= ? order by at, key limit ?",
                (channel, _text(now), EVENTS_PER_MESSAGE),
            ).fetchall()
            self._connection.executemany(
                "update deliveries set next_try = ? where key = ? and channel = ?",
                [(_text(now + timedelta(seconds=FIRST_RETRY_S)), row[0], channel) for row in rows],
            )
        return [Event(key, kind, datetime.fromisoformat(at), text) for key, kind, at, text in rows]

    def delivered(self, channel: str, events: Sequence[Event], now: datetime) -> None:
        self._connection.executemany(
            "update deliveries set state = 'delivered', attempts = attempts + 1, error = null, delivered_at = ? "
            "where key = ? and channel = ?",
            [(_text(now), e.key, channel) for e in events],
        )

    def failed(self, channel: str, events: Sequence[Event], now: datetime, error: str) -> None:
        with self._transaction():
            for event in events:
                (attempts,) = self._connection.execute(
                    "select attempts + 1 from deliveries where key = ? and channel = ?", (event.key, channel)
                ).fetchone()
                wait = min(FIRST_RETRY_S * 2 ** min(attempts - 1, 20), LAST_RETRY_S)
                self._connection.execute(
                    "update deliveries set attempts = ?, next_try = ?, error = ? where key = ? and channel = ?",
                    (attempts, _text(now + timedelta(seconds=wait)), error[:LONGEST], event.key, channel),
                )

    def waiting(self, channel: str) -> int:
        return self._connection.execute(
            "select count(*) from deliveries where channel = ? and state = 'waiting'", (channel,)
        ).fetchone()[0]


def _text(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")

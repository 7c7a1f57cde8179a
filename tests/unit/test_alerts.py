"""Alerts against a real HTTP and a real SMTP server: each once, tried again, never in the way, never a secret."""

from __future__ import annotations

import json
import socketserver
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import duckdb
import pytest
from pydantic import ValidationError

from ml.alerts import AlertSettings, Event, collect, deliver, known_keys, log_file, redact
from ml.settings import Settings

NOW = datetime(2026, 1, 1, 12)
FILE = Event("file/a", "file_quarantined", NOW, "a.csv lacks the column 'price'")
HUMAN = Event("human/1", "needs_human", NOW, "v2 in 2023-05: drift persists")


S = TypeVar("S", bound=socketserver.BaseServer)


class Webhook(ThreadingHTTPServer):
    """Answers with the statuses of ``answers`` in turn (then 200), after ``delay_s``; keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hook)
        self.answers: list[int] = []
        self.delay_s = 0.0
        self.received: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/services/T0/hush-hush-path"


class _Hook(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.delay_s)
        status = self.server.answers.pop(0) if self.server.answers else 200
        if status == 200:
            assert self.headers["Content-Type"] == "application/json"
            self.server.received.append(json.loads(body)["text"])
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    do_GET = do_POST  # a redirect that is followed would arrive here

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


class Mailbox(socketserver.ThreadingTCPServer):
    """Just enough of SMTP; keeps commands and messages."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Smtp)
        self.commands: list[str] = []
        self.messages: list[str] = []
        self.refuses_data = False


class _Smtp(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().decode().strip():
            self.server.commands.append(line)
            match line.split()[0].upper():
                case "EHLO":
                    self.wfile.write(b"250-here\r\n250 AUTH PLAIN\r\n")
                case "AUTH":
                    self.wfile.write(b"235 welcome\r\n")
                case "DATA" if self.server.refuses_data:
                    self.wfile.write(b"451 later\r\n")
                case "DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    self.server.messages.append(b"".join(lines).decode())
                    self.wfile.write(b"250 taken\r\n")
                case "STARTTLS":
                    self.wfile.write(b"502 not here\r\n")
                case "QUIT":
                    self.wfile.write(b"221 bye\r\n")
                    return
                case _:
                    self.wfile.write(b"250 fine\r\n")


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    yield from _serving(Webhook())


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    yield from _serving(Mailbox())


def _serving(server: S) -> Iterator[S]:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return Settings(home=tmp_path, dataset="hdb")


def by_webhook(webhook: Webhook, **changes: object) -> AlertSettings:
    return AlertSettings.model_validate({"webhook_url": webhook.url, **changes})


def by_mail(mailbox: Mailbox, **changes: object) -> AlertSettings:
    given = {"smtp_host": "127.0.0.1", "smtp_port": mailbox.server_address[1], "smtp_starttls": False}
    return AlertSettings.model_validate({**given, "smtp_from": "h@a.example", "smtp_to": "o@b.example", **changes})


def test_an_event_is_delivered_once_however_often_it_is_seen(settings: Settings, webhook: Webhook) -> None:
    alerts = by_webhook(webhook)
    for minute in range(5):
        done = deliver(settings, [FILE, FILE], alerts=alerts, now=NOW + timedelta(minutes=minute))
        assert len(done.new) == (1 if minute == 0 else 0)
        assert done.waiting == {"log": 0, "webhook": 0}
    assert webhook.received == [
        "[housing hdb] File quarantined\n• File quarantined: a.csv lacks the column 'price' (2026-01-01 12:00 UTC)"
    ]
    assert log_file(settings).read_text().splitlines() == [
        "2026-01-01T12:00:00Z file_quarantined a.csv lacks the column 'price'"
    ]
    assert known_keys(settings) == {FILE.key}


@pytest.mark.parametrize("status", [500, 404, 302])
def test_what_an_endpoint_refused_is_sent_later_and_ever_more_rarely(
    settings: Settings, webhook: Webhook, status: int
) -> None:
    webhook.answers = [status] * 3
    alerts = by_webhook(webhook)
    attempts = []
    for minute in range(10):
        before = len(webhook.answers), len(webhook.received)
        deliver(settings, [FILE], alerts=alerts, now=NOW + timedelta(minutes=minute))
        attempts += [minute] if before != (len(webhook.answers), len(webhook.received)) else []
    assert attempts == [0, 1, 3, 7]
    assert len(webhook.received) == 1


def test_an_endpoint_that_never_comes_back_is_asked_every_hour_and_nothing_is_given_up(
    settings: Settings, webhook: Webhook
) -> None:
    webhook.answers = [503] * 1000
    for hour in range(24):
        done = deliver(settings, [HUMAN], alerts=by_webhook(webhook), now=NOW + timedelta(hours=hour))
        assert done.waiting["webhook"] == 1
    assert len(webhook.answers) == 1000 - 24
    webhook.answers = []
    assert deliver(settings, [], alerts=by_webhook(webhook), now=NOW + timedelta(days=2)).sent["webhook"] == 1


def test_a_hanging_endpoint_costs_its_timeout_and_the_other_channels_nothing(
    settings: Settings, webhook: Webhook, mailbox: Mailbox
) -> None:
    webhook.delay_s = 60
    given = by_mail(mailbox).model_dump() | {"webhook_url": webhook.url, "timeout_s": 0.3}
    started = time.monotonic()
    done = deliver(settings, [FILE, HUMAN], alerts=AlertSettings.model_validate(given), now=NOW)
    assert time.monotonic() - started < 1.5
    assert done.sent == {"log": 2, "webhook": 0, "email": 2}
    assert done.waiting == {"log": 0, "webhook": 2, "email": 0}


def test_the_time_for_all_channels_together_is_bounded(settings: Settings, webhook: Webhook) -> None:
    webhook.delay_s = 60
    started = time.monotonic()
    deliver(settings, [FILE], alerts=by_webhook(webhook, timeout_s=30), budget_s=0.3, now=NOW)
    assert time.monotonic() - started < 1.5


def test_two_processes_do_not_send_the_same_event_twice(settings: Settings, webhook: Webhook) -> None:
    webhook.delay_s = 0.3
    threads = [
        threading.Thread(target=deliver, args=(settings, [FILE]), kwargs={"alerts": by_webhook(webhook), "now": NOW})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(webhook.received) == 1


def test_mail_is_sent_with_subject_and_one_line_an_event(settings: Settings, mailbox: Mailbox) -> None:
    deliver(settings, [FILE, HUMAN], alerts=by_mail(mailbox), now=NOW)
    (message,) = mailbox.messages
    assert "Subject: [housing hdb] File quarantined and 1 more\r\n" in message
    assert "To: o@b.example\r\n" in message
    assert "- A person is needed: v2 in 2023-05: drift persists (2026-01-01 12:00 UTC)\r\n" in message


def test_mail_that_was_refused_is_sent_later_as_the_same_message(settings: Settings, mailbox: Mailbox) -> None:
    mailbox.refuses_data = True
    assert deliver(settings, [FILE], alerts=by_mail(mailbox), now=NOW).waiting["email"] == 1
    mailbox.refuses_data = False
    assert deliver(settings, [], alerts=by_mail(mailbox), now=NOW + timedelta(minutes=1)).sent["email"] == 1
    assert len(mailbox.messages) == 1


def test_a_password_goes_to_a_server_that_encrypts_or_nowhere(settings: Settings, mailbox: Mailbox) -> None:
    given = {"smtp_user": "u", "smtp_password": "pass-phrase", "smtp_starttls": True}
    assert deliver(settings, [FILE], alerts=by_mail(mailbox, **given), now=NOW).waiting["email"] == 1
    assert not any(command.startswith("AUTH") for command in mailbox.commands)
    assert not mailbox.messages
    given["smtp_starttls"] = False  # as told
    later = NOW + timedelta(minutes=1)
    assert deliver(settings, [], alerts=by_mail(mailbox, **given), now=later).sent["email"] == 1
    assert any(command.startswith("AUTH") for command in mailbox.commands)


def test_the_first_look_at_an_old_home_sends_only_the_news(settings: Settings, webhook: Webhook) -> None:
    old = [Event(f"old/{n}", "run_failed", NOW - timedelta(days=2 + n), "then") for n in range(300)]
    assert [e.key for e in deliver(settings, [*old, FILE], alerts=by_webhook(webhook), now=NOW).new] == [FILE.key]
    assert len(webhook.received) == 1
    # later, an event of long ago is news: the daemon may have been off for a week
    late = Event("late", "run_failed", NOW - timedelta(days=7), "while nobody looked")
    assert deliver(settings, [*old, late], alerts=by_webhook(webhook), now=NOW).new == (late,)


def test_many_events_are_few_messages(settings: Settings, webhook: Webhook) -> None:
    events = [Event(f"file/{n}", "file_quarantined", NOW, "x" * 5000) for n in range(45)]
    assert deliver(settings, events, alerts=by_webhook(webhook), now=NOW).sent["webhook"] == 45
    assert len(webhook.received) == 3
    assert max(map(len, webhook.received)) < 22_000


SECRETS = {
    "url": "see postgresql://housing:hunter22@db.example/mlflow for more",
    "query": "GET https://store.example/a?sig=hunter22 failed",
    "assignment": "connect(password='hunter22') failed",
    "json": '{"api_key": "hunter22"}',
    "header": "Authorization: Bearer hunter22",
    "variable": "the broker said hunter22 is wrong",
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_no_secret_leaves_or_is_kept(
    settings: Settings, webhook: Webhook, mailbox: Mailbox, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text == SECRETS["variable"]:
        monkeypatch.setenv("BROKER_TOKEN", "hunter22")
    given = by_mail(mailbox, smtp_user="u", smtp_password="other-pass").model_dump()
    alerts = AlertSettings.model_validate({**given, "webhook_url": webhook.url})
    event = Event("run/1", "run_failed", NOW, f"{text}; posting to {webhook.url} with other-pass")
    deliver(settings, [event], alerts=alerts, now=NOW)
    outbox = sqlite3.connect(settings.home / "alerts" / "hdb.db")
    everything = "\n".join([*webhook.received, *mailbox.messages, log_file(settings).read_text(), *outbox.iterdump()])
    assert everything.count("run_failed")
    for secret in ("hunter22", "hush-hush", "other-pass"):
        assert secret not in everything


def test_what_is_no_secret_stays_readable() -> None:
    text = "token_count 3: https://docs.example/page says basic checks of v3 failed, key a=b"
    assert redact(text) == text


def test_settings_that_cannot_work_are_refused_without_showing_them() -> None:
    for given, why in [
        ({"smtp_host": "mail"}, "needs HOUSING_ALERT_SMTP_FROM"),
        ({"webhook_url": "hooks.example/hunter22"}, "must start with https://"),
        ({"smtp_password": "hunter22"}, "go together"),
    ]:
        with pytest.raises(ValidationError, match=why) as refused:
            AlertSettings.model_validate(given)
        assert "hunter22" not in str(refused.value)


def published(settings: Settings, *statements: str) -> Settings:
    settings.published.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(settings.published)) as connection:
        for statement in statements:
            connection.execute(statement)
    return settings


MINIMAL = (
    "create schema raw; create schema training; create schema monitoring; create schema published;",
    "create table published.about as select timestamp '2026-01-01 12:00:00' as published_at",
    "create table raw.files (file varchar, sha256 varchar, bytes bigint, loaded_at timestamp, status varchar, "
    "reason varchar)",
    "insert into raw.files values ('a.csv', 'aa', 9, '2026-01-01', 'quarantined', 'a.csv is empty'), "
    "('b.csv', 'bb', 9, '2026-01-01', 'loaded', null)",
)
MODELS = (
    "create table training.model_versions (model_version varchar, status varchar, reasons varchar[], created_at "
    "timestamp)",
    "insert into training.model_versions values ('v1', 'archived', [], '2026-01-01'), ('v3', 'champion', [], "
    "'2026-01-03'), ('v4', 'challenger', [], '2026-01-05'), "
    "('v2', 'rejected', ['r2 is 0.1', 'worse than a mean'], '2026-01-02')",
    "create table training.model_aliases (alias varchar, model_version varchar, previous_version varchar, moved_at "
    "timestamp, actor varchar, reason varchar)",
    "insert into training.model_aliases values ('champion', 'v1', null, '2026-01-01', 'gate', 'passed'), "
    "('challenger', 'v3', null, '2026-01-03', 'gate', 'passed'), "
    "('champion', 'v3', 'v1', '2026-01-04', 'promotion', 'better by 4 %')",
    "create table training.promotion_decisions (challenger varchar, champion varchar, decided_at timestamp, verdict "
    "varchar, mode varchar, reason varchar)",
    "insert into training.promotion_decisions values ('v3', 'v1', '2026-01-04', 'promote', 'manual', 'long ago'), "
    "('v4', 'v3', '2026-01-06', 'promote', 'manual', 'better by 3 %')",
)
VERDICTS = (
    "create table monitoring.checks (model_version varchar, month date, check_name varchar, value double, lower_limit "
    "double, upper_limit double, n bigint, status varchar, severity varchar, since date)",
    "insert into monitoring.checks values "
    "('v3', '2023-04-01', 'mdape_pct', 9.5, null, 8.0, 400, 'fail', 'error', '2023-04-01'), "
    "('v3', '2023-05-01', 'mdape_pct', 9.7, null, 8.0, 400, 'fail', 'error', '2023-04-01'), "
    "('v3', '2023-04-01', 'median_ratio', 0.8, 0.9, 1.1, 400, 'fail', 'error', '2023-04-01'), "
    "('v3', '2023-05-01', 'median_ratio', 1.0, 0.9, 1.1, 400, 'pass', 'error', '2023-05-01'), "
    "('v3', '2023-05-01', 'psi', 1.0, null, 0.2, 400, 'fail', 'warn', '2023-05-01'), "
    "('v1', '2023-05-01', 'mdape_pct', 20, null, 8.0, 400, 'fail', 'error', '2023-01-01')",
    "create table monitoring.retrain_decisions (decision_id varchar, model_version varchar, month date, decision "
    "varchar, reasons varchar[])",
    "insert into monitoring.retrain_decisions values ('d1', 'v3', '2023-04-01', 'needs_human', ['old']), "
    "('d2', 'v3', '2023-05-01', 'needs_human', ['drift persists after a retrain']), "
    # what served the month before a rollback
    "('d3', 'v1', '2023-05-01', 'hold', []), ('d4', 'v1', '2023-06-01', 'hold', [])",
)


def test_the_snapshot_tells_what_happened(settings: Settings) -> None:
    found = {e.key: e for e in collect(published(settings, *MINIMAL, *MODELS, *VERDICTS))}
    assert {e.kind for e in found.values()} == {
        *("file_quarantined", "check_failed", "needs_human", "champion_moved", "version_rejected")
    }
    assert [e.text for e in found.values() if e.kind == "file_quarantined"] == ["a.csv is empty"]
    assert [e.text for e in found.values() if e.kind == "version_rejected"] == ["v2: r2 is 0.1; worse than a mean"]
    assert {e.text for e in found.values() if e.kind == "champion_moved"} == {
        "v1 replaced nobody, by gate: passed",
        "v3 replaced v1, by promotion: better by 4 %",
    }
    # one alert for as long as the check fails, of the champion, at its newest month
    (check,) = [e for e in found.values() if e.kind == "check_failed"]
    assert check.key == "check_failed/v3/mdape_pct/2023-04-01"
    assert check.text == "mdape_pct of v3 fails in 2023-05, since 2023-04: 9.7, most allowed 8.0, n 400"
    assert {e.key: e.text for e in found.values() if e.kind == "needs_human"} == {
        "needs_human/d2": "v3 in 2023-05: drift persists after a retrain",
        "needs_human/promote/v4/v3": "v4 waits for `housing promote -d hdb`: better by 3 %",
    }


def test_a_snapshot_without_the_newer_tables_tells_what_it_can(settings: Settings) -> None:
    assert collect(settings) == []
    assert [e.kind for e in collect(published(settings, *MINIMAL))] == ["file_quarantined"]

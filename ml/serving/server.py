"""The process that listens: logs as JSON, memory given back, a graceful end."""

from __future__ import annotations

import ctypes
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from ml.serving.app import create_app
from ml.serving.settings import ApiSettings
from ml.settings import Settings

#: Options of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and what a request's line holds. No bodies, no addresses."""

    FIELDS = ("request_id", "method", "route", "status", "ms", "rows", "caller")

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in self.FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _return_memory() -> None:
    """Large buffers go back to the system: left alone, glibc keeps ever larger ones (584 against 913 MiB measured)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, size in ((M_MMAP_THRESHOLD, 128 * 1024), (M_TRIM_THRESHOLD, 16 * 1024**2)):
            libc.mallopt(option, size)


def serve(settings: Settings, api: ApiSettings) -> None:
    """Listen until SIGTERM or SIGINT; open requests are answered, journals closed."""
    import uvicorn

    from ml.serving.protocol import LimitedProtocol

    _return_memory()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for name, level in (("housing.api", logging.INFO), ("uvicorn.error", logging.INFO)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    uvicorn.run(
        create_app(settings, api),
        host=api.host,
        port=api.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=api.shutdown_s,
        http=LimitedProtocol,
    )

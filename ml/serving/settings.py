"""Settings of the API process: ``HOUSING_API_*`` variables or ``.env``. Where things are: ``ml/settings.py``."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from ml.settings import Variables


class ApiSettings(Variables):
    """How the API listens, limits, guards and journals. Illegal combinations are refused at start."""

    model_config = SettingsConfigDict(env_prefix="HOUSING_API_", env_file=".env", extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on; beyond this machine only with keys")
    port: int = Field(default=8000, ge=0, le=65535, description="0: any free port")
    keys: str = Field(default="", description="lines `name scope,scope sha256`; also separated by semicolons")
    keys_file: Path | None = Field(default=None, description="file of such lines")
    rate_per_s: float = Field(default=300.0, gt=0, description="requests a second of one key, on average")
    rate_burst: int = Field(default=600, ge=1, description="requests of one key at once")
    max_rows: int = Field(default=10_000, ge=1, le=100_000, description="rows of one request")
    max_body_bytes: int = Field(default=9_500_000, ge=1_000, description="larger bodies are refused with 413")
    max_explained_rows: int = Field(default=20, ge=1, description="rows of one request for an explanation")
    request_timeout_s: float = Field(default=30.0, gt=0, description="a request that takes longer is answered 503")
    body_timeout_s: float = Field(default=10.0, gt=0, description="a body that arrives slower is answered 408")
    max_waiting: int = Field(default=512, ge=1, description="requests waiting for a price; more are answered 503")
    shutdown_s: int = Field(default=10, ge=1, description="how long open requests may take to end on shutdown")
    poll_s: float = Field(default=2.0, gt=0, description="how often the snapshot is looked at")
    max_snapshot_age_h: float = Field(default=0, ge=0, description="older snapshots make /ready fail; 0: never")
    rotate_bytes: int = Field(default=16_000_000, ge=1_000, description="a journal file is closed at this size")
    rotate_s: float = Field(default=300.0, gt=0, description="and at this age, then it is loaded by the next run")
    flush_s: float = Field(default=1.0, gt=0, description="how often predictions are written to disk")

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def has_keys(self) -> bool:
        return bool(self.keys.strip()) or self.keys_file is not None

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if not self.is_local and not self.has_keys:
            raise ValueError(
                f"host {self.host}: without API keys the service listens on 127.0.0.1 only; "
                "set HOUSING_API_KEYS or HOUSING_API_KEYS_FILE (make one with: housing serve --new-key NAME)"
            )
        return self

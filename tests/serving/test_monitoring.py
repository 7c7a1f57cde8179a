"""A real Prometheus scrapes the real API; rules, scrape config and dashboard are checked, and name only what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ml.settings import PROJECT_ROOT
from tests.servers import free_port, started
from tests.serving.conftest import Api

MONITORING = PROJECT_ROOT / "deploy" / "monitoring"
METRIC = re.compile(r"\b((?:http|housing|process)_[a-z_]+)\b")


def needed(tool: str) -> str:
    path = shutil.which(tool)
    if not path:
        pytest.skip(f"{tool} is not installed (Debian: apt-get install prometheus)")
    return path


def expressions() -> list[str]:
    """Every PromQL expression of rules and dashboard."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
    out = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return out + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_rules_and_scrape_config_pass_promtool() -> None:
    promtool = needed("promtool")
    for arguments in ("check rules alerts.yml", "check config prometheus.yml", "test rules alerts_test.yml"):
        done = subprocess.run(
            [promtool, *arguments.split()], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_real_prometheus_scrapes_it_and_knows_every_metric_that_is_asked_for(
    api: Api, example: dict[str, Any], tmp_path: Path
) -> None:
    prometheus = needed("prometheus")
    api.client.post("/v1/predict", json=example).raise_for_status()
    api.client.post("/v1/predict", json={})
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"]["scrape_interval"] = "200ms"
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [api.url.removeprefix("http://")]
    config["scrape_configs"][0].pop("scrape_timeout", None)
    config["global"]["scrape_timeout"] = "200ms"
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    command = [prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with started(command, tmp_path / "log"), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
        up = asked(client, 'up{job="housing_api"}', tmp_path)
        assert [v["value"][1] for v in up] == ["1"]
        [model] = asked(client, "housing_model_info", tmp_path)
        assert model["metric"]["model_version"] == "v1" and model["metric"]["role"] == "champion"
        assert float(asked(client, "sum(housing_predictions_total)", tmp_path)[0]["value"][1]) >= 1
        known = set(client.get("/api/v1/label/__name__/values").json()["data"])
        named = {name for text in expressions() for name in METRIC.findall(re.sub(r'"[^"]*"', "", text))}
        assert named <= known, named - known
        for text in expressions():
            answer = client.get("/api/v1/query", params={"query": text}).json()
            assert answer["status"] == "success", (text, answer)
        rules = client.get("/api/v1/rules").json()["data"]["groups"]
        assert rules and all(r["health"] != "err" for group in rules for r in group["rules"])


def asked(client: httpx.Client, query: str, folder: Path) -> list[dict[str, Any]]:
    """Result of a query as soon as there is one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            result = client.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
            if result:
                return result
        except (httpx.TransportError, ValueError, KeyError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"no answer to {query}: {(folder / 'log').read_text(encoding='utf-8')[-2000:]}")

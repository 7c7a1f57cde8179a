"""What the routes answer: prices, errors as problem+json, keys, limits. Never a 500, never a price for nonsense."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.routing import Route

from ml.registry import load_bundle
from ml.serving.app import create_app
from ml.serving.bodies import parse
from ml.serving.engine import Engine
from ml.serving.example import example_row
from ml.serving.middleware import OPEN, SCOPES
from ml.serving.problems import ProblemError, without_paths
from ml.serving.responses import BatchPredictions, ModelInfo, Ready
from ml.serving.schemas import _date, schemas
from ml.serving.security import Guard, KeyFileError, new_key
from ml.serving.settings import ApiSettings
from ml.serving.snapshot import Snapshot
from tests.built import built_home
from tests.conftest import Home
from tests.serving.conftest import Api, running

JSON = {"content-type": "application/json"}


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The body of an error, checked for its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "status", "detail", "request_id"} <= body.keys()
    assert body["status"] == status
    assert "predicted_price" not in answer.text
    return body


def test_one_row_gets_a_price_with_ranges_around_it(api: Api, example: dict[str, Any]) -> None:
    answer = api.client.post("/v1/predict", json=example, headers={"x-request-id": "mine-1"})
    [row] = answer.json()["predictions"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine-1"
    r = row["intervals"]
    ends = [r["95"]["lower"], r["80"]["lower"], r["50"]["lower"], row["predicted_price"]]
    ends += [r["50"]["upper"], r["80"]["upper"], r["95"]["upper"]]
    assert ends == sorted(ends) and ends[0] > 0
    assert row["grade"] in "ABCD" and row["model_version"] == "v1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_a_bad_row_among_good_ones_is_an_error_in_its_place(api: Api, example: dict[str, Any]) -> None:
    bad = {**example, "floor_area_sqm": -5, "colour": "blue"}
    lost = {**example, "sold_month": "2017-01"}  # a month before anything is known: no level, no price
    rows = api.client.post("/v1/predict", json={"rows": [example, bad, lost, example]}).json()["predictions"]
    assert [r["index"] for r in rows] == [0, 1, 2, 3]
    assert rows[0]["predicted_price"] == rows[3]["predicted_price"] > 0
    assert {e["field"] for e in rows[1]["error"]["errors"]} == {"floor_area_sqm", "colour"}
    assert rows[2]["error"]["errors"] == [{"field": "row", "reason": "no price level is known for its place and month"}]
    assert all("predicted_price" not in rows[i] for i in (1, 2))


def test_warnings_tell_what_the_model_has_not_seen(
    api: Api, example: dict[str, Any], raw: list[dict[str, Any]]
) -> None:
    odd = {**example, "town": "NOWHERE BEFORE", "floor_area_sqm": 480.0, "lease_commence_year": 1.0, "latitude": None}
    [row] = api.client.post("/v1/predict", json=odd).json()["predictions"]
    told = {(w["code"], w["field"]) for w in row["warnings"]}
    assert {
        ("unseen_area", "town"),
        ("outside_training_range", "floor_area_sqm"),
        ("out_of_range", "lease_commence_year"),
        ("missing_feature", "latitude"),
    } <= told
    assert ("missing_feature", "lease_commence_year") not in told  # it was given, and is told to be out of range
    [known] = api.client.post("/v1/predict", json=example).json()["predictions"]
    assert "unseen_area" not in {w["code"] for w in known["warnings"]}
    # nor is it as sure of a place that it knows nothing of, where nothing else makes it unsure
    whole = next({k: v for k, v in row.items() if k != "want"} for row in raw if row["want"]["grade"] == "B")
    rows = [whole, {**whole, "town": "NOWHERE BEFORE"}]
    known, new = api.client.post("/v1/predict", json={"rows": rows}).json()["predictions"]
    assert new["forecast_std_pct"] > 1.5 * known["forecast_std_pct"] and new["grade"] > known["grade"]


def test_what_no_learned_home_lacks_is_taken_for_the_usual_and_the_price_is_less_sure(
    api: Api, raw: list[dict[str, Any]]
) -> None:
    whole = next({k: v for k, v in row.items() if k != "want"} for row in raw if row["storey_range"])
    for lacking in ("latitude", "longitude"):
        rows = [whole, {**whole, lacking: None}]
        known, without = api.client.post("/v1/predict", json={"rows": rows}).json()["predictions"]
        assert without["predicted_price"] == pytest.approx(known["predicted_price"], rel=0.1)
        assert without["forecast_std_pct"] > 1.05 * known["forecast_std_pct"]
        [message] = [w["message"] for w in without["warnings"] if w["field"] == lacking]
        assert re.fullmatch(r"not given; its median, [\d.]+, takes its place", message)
        assert not [w for w in known["warnings"] if w["code"] == "missing_feature"]
    [explained] = api.client.post("/v1/predict/explain", json=rows[1]).json()["predictions"]
    [told] = [c for c in explained["contributions"] if c["feature"] == lacking]
    assert told["value"] is None, "what takes its place is not what was given"


def test_a_month_before_which_no_error_is_known_has_no_range_and_says_so(api: Api, example: dict[str, Any]) -> None:
    early = {**example, "sold_month": "2021-06"}
    early, now = api.client.post("/v1/predict", json={"rows": [early, example]}).json()["predictions"]
    assert early["predicted_price"] > 0 and early["intervals"] is None and early["grade"] is None
    assert [w["code"] for w in early["warnings"] if w["field"] == "row"] == ["no_range"]
    assert now["intervals"] and "no_range" not in {w["code"] for w in now["warnings"]}


def test_the_worked_example_is_of_a_place_that_the_model_knows(
    served: Home, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # of housets, the area is derived from a text that is no feature
    for home in (served, built_home(tmp_path_factory)):
        snapshot = Snapshot(home.settings)
        version = snapshot.versions()["champion"]
        engine = Engine(home.contract, snapshot, version, load_bundle(home.settings, version))
        row = example_row(home.contract, snapshot)
        answers = engine.answer([row], "champion")
        [newest] = snapshot.rows(
            "from training.training_dataset where price is not null order by month desc, observation_id limit 1"
        )
        ids = {row["observation_id"] for row in snapshot.rows("select observation_id from training.training_dataset")}
        snapshot.close()
        assert answers.price[0] > 0
        assert not [w for w in answers.warnings[0] if w["code"].startswith("unseen")]
        date_column = next(c for c in home.contract.columns if c.name == home.contract.observed_on)
        assert row[date_column.name] == newest["observed_on"].strftime(date_column.format or "")
        # a transaction's number cannot be known, but where place and day are the key, the home is the landed one
        assert home is served or answers.checked["observation_id"].to_pylist()[0] in ids


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"colour": "blue"}, "colour"),
    "missing field": ({"town": ...}, "town"),
    "null where required": ({"town": None}, "town"),
    "wrong type": ({"floor_area_sqm": "90"}, "floor_area_sqm"),
    "a boolean is no number": ({"floor_area_sqm": True}, "floor_area_sqm"),
    "negative area": ({"floor_area_sqm": -90}, "floor_area_sqm"),
    "below zero where nothing can be": ({"lease_commence_year": -1990}, "lease_commence_year"),
    "not allowed": ({"flat_type": "CASTLE"}, "flat_type"),
    "far future": ({"sold_month": "2999-01"}, "sold_month"),
    "no date": ({"sold_month": "2023-13"}, "sold_month"),
    "digits of another script": ({"sold_month": "\uff12\uff10\uff12\uff11-12"}, "sold_month"),
    "control character": ({"street_name": "A\u001fB"}, "street_name"),
    "blank": ({"street_name": "   "}, "street_name"),
    "too long": ({"street_name": "x" * 10_000}, "street_name"),
    "the price itself": ({"resale_price": 500000}, "resale_price"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_does_not_fit_the_contract_is_told_by_field(api: Api, example: dict[str, Any], case: str) -> None:
    change, field = CHANGES[case]
    row = {k: v for k, v in {**example, **change}.items() if v is not ...}
    body = problem(api.client.post("/v1/predict", json=row), 422)
    assert [e["field"] for e in body["errors"]] == [field]
    assert body["errors"][0]["reason"]


BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "no json": (b"{not json", 400),
    "cut": (b'{"rows": [', 400),
    "deep": (b"[" * 100_000, 400),
    "deep and closed": (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400),
    "not utf-8": (b'{"town": "\xff\xfe"}', 400),
    "half a surrogate": (b'{"town": "\\ud800"}', 400),
    "nan": (b'{"floor_area_sqm": NaN}', 422),
    "infinity": (b'{"floor_area_sqm": -Infinity}', 422),
    "huge": (b'{"floor_area_sqm": 1e999}', 422),
    "huge integer": (b'{"floor_area_sqm": ' + b"9" * 4_000 + b"}", 422),
    "null": (b"null", 422),
    "a list": (b"[]", 422),
    "no rows": (b'{"rows": []}', 422),
    "rows are no list": (b'{"rows": 5}', 422),
    "more beside rows": (b'{"rows": [{}], "x": 1}', 422),
    "too many rows": (b'{"rows": [' + b",".join([b"1"] * 10_001) + b"]}", 422),
    "10 MB": (b'{"rows": "' + b"x" * 10_000_000 + b'"}', 413),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies_that_are_no_request_are_refused(api: Api, case: str) -> None:
    body, status = BODIES[case]
    problem(api.client.post("/v1/predict", content=body, headers=JSON), status)


def test_a_small_body_of_many_errors_costs_little(served: Home, example: dict[str, Any]) -> None:
    """4 MB of 10,000 rows with 60 unknown fields each took 1.5 GB and held up everybody for seconds."""
    known = schemas(served.contract, 10_000)
    odd = {**example, **{f"f{i}": 1 for i in range(60)}}
    bodies = {
        "rows": {"rows": [odd] * 2_000},
        "one row": {f"f{i}": 1 for i in range(100_000)},
        "beside the rows": {"rows": [example], **{f"f{i}": 1 for i in range(100_000)}},
    }
    for name, content in bodies.items():
        body = json.dumps(content).encode()
        tracemalloc.start()
        try:
            parsed = parse(known, body)
            assert parsed.errors.keys() == {*range(2_000)} and not parsed.rows
            assert all(1 <= len(errors) <= 10 for errors in parsed.errors.values())
        except ProblemError as error:
            assert name != "rows" and error.status == 422 and 1 <= len(error.errors) <= 50
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60_000_000, (name, peak)


def test_rows_are_found_wherever_they_stand_in_a_body(served: Home, example: dict[str, Any]) -> None:
    known = schemas(served.contract, 10)
    rows = json.dumps({"rows": [example]}).encode()
    assert not parse(known, b" " * 500 + rows).single
    assert not parse(known, rows.replace(b"rows", b"r\\u006fws", 1)).single
    with pytest.raises(ProblemError) as caught:
        parse(known, json.dumps({"x": 1, "rows": [example]}).encode())
    assert [e["field"] for e in caught.value.errors] == ["x"]
    assert parse(known, json.dumps(example).encode()).single


def test_dates_have_ascii_digits_whatever_their_format(served: Home) -> None:
    [column] = [c for c in served.contract.columns if c.name == "sold_month"]
    check = _date(served.contract, column.model_copy(update={"format": "%H %Y-%m"}))  # of no pattern
    assert check("10 2021-12") == "10 2021-12"
    with pytest.raises(ValueError, match="is no date"):
        check("10 \uff12\uff10\uff12\uff11-12")


def test_what_is_no_date_is_told_by_an_example(api: Api, example: dict[str, Any]) -> None:
    for text in ("2023-1", "2023/12", "2023-12\n", "December", ""):
        answer = api.client.post("/v1/predict", json={**example, "sold_month": text})
        assert answer.status_code == 422, text
        assert answer.json()["errors"] == [{"field": "sold_month", "reason": "is no date as %Y-%m, like 2023-12"}], text


def refused_rows(api: Api) -> float:
    found = re.search(r'^housing_rows_refused_total\{why="invalid"\} (.+)$', api.client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0


@pytest.mark.parametrize("route", ["/v1/predict", "/v1/predict/explain"])
def test_a_refused_row_is_counted_alone_and_among_others(api: Api, example: dict[str, Any], route: str) -> None:
    bad = {**example, "floor_area_sqm": -5}
    for body, more in ((bad, 1), ({"rows": [bad, example, bad]}, 2), ({"rows": [bad]}, 1), ({"rows": 5}, 0)):
        before = refused_rows(api)
        api.client.post(route, json=body)
        assert refused_rows(api) == before + more, body


def test_every_wrong_field_of_a_row_is_told(api: Api, example: dict[str, Any]) -> None:
    body = problem(api.client.post("/v1/predict", json={**example, "colour": "blue", "floor_area_sqm": -5}), 422)
    assert {e["field"] for e in body["errors"]} == {"floor_area_sqm", "colour"}


def test_a_body_without_its_length_is_cut_at_the_limit(api: Api) -> None:
    chunks = (b"x" * 1_000_000 for _ in range(12))
    problem(api.client.post("/v1/predict", content=chunks, headers=JSON), 413)


def test_other_errors_are_problems_as_well(api: Api) -> None:
    problem(api.client.get("/nothing"), 404)
    problem(api.client.get("/v1/predict"), 405)
    problem(api.client.post("/v1/predict", content=b"{}", headers={"content-type": "text/plain"}), 415)
    problem(api.client.get("/v1/predictions", params={"month": "2023-13"}), 422)
    problem(api.client.get("/v1/predictions", params={"month": "\uff12\uff10\uff12\uff13-12"}), 422)
    problem(api.client.get("/v1/predictions", params={"limit": 0}), 422)


def test_an_explanation_adds_up_and_names_earlier_sales_of_the_area(api: Api, example: dict[str, Any]) -> None:
    [row] = api.client.post("/v1/predict/explain", json=example).json()["predictions"]
    total = sum(c["contribution"] for c in row["contributions"])
    assert total == pytest.approx(row["predicted_price"], rel=1e-5)
    assert row["contributions"][0]["feature"] == "(price level)"
    assert len(row["comparables"]) == 5
    assert all(c["sold_month"] < row["encoding_month"] for c in row["comparables"])
    similarity = [c["similarity"] for c in row["comparables"]]
    assert similarity == sorted(similarity, reverse=True)
    problem(api.client.post("/v1/predict/explain", json={"rows": [example] * 21}), 422)


def test_batch_predictions_are_paged_and_filtered(api: Api, served: Home) -> None:
    month = {"month": "2022-01"}
    n = served.one("select count(*) from predictions.predictions where kind = 'model' and month = date '2022-01-01'")
    seen: list[str] = []
    after = None
    while True:
        query = {**month, "limit": 900, **({"after": after} if after else {})}
        page = api.client.get("/v1/predictions", params=query).json()
        seen += [p["observation_id"] for p in page["predictions"]]
        after = page["next"]
        if not after:
            break
    assert len(seen) == len(set(seen)) == n
    [one] = api.client.get("/v1/predictions", params={"observation_id": seen[0]}).json()["predictions"]
    assert one["lower_80"] < one["predicted_price"] < one["upper_80"]
    in_area = api.client.get("/v1/predictions", params={**month, "area": one["area"]}).json()["predictions"]
    assert {p["area"] for p in in_area} == {one["area"]}
    assert api.client.get("/v1/predictions", params={"area": "NOWHERE"}).json() == {
        "currency": "SGD", "predictions": [], "next": None,
    }  # fmt: skip


def test_model_info_says_what_answers(api: Api, served: Home) -> None:
    info = api.client.get("/v1/model-info").json()
    [version] = info["versions"]
    assert (version["alias"], version["model_version"]) == ("champion", "v1")
    assert version["trained_through"] == "2021-12-01"
    assert version["features"] == list(served.contract.features)
    assert version["eval"]["mdape_pct"] == served.one("select eval_mdape_pct from training.model_versions")
    assert info["snapshot"]["fingerprint"] == api.client.get("/ready").json()["snapshot"]["fingerprint"]


def test_the_document_has_the_contracts_columns_units_ranges_and_values(api: Api, served: Home) -> None:
    document = api.client.get("/openapi.json").json()
    body = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]
    row = body["schema"]["anyOf"][0]["properties"]
    assert row["floor_area_sqm"]["minimum"] == 15 and row["floor_area_sqm"]["maximum"] == 500
    assert "sqm" in row["floor_area_sqm"]["description"]
    assert row["flat_type"]["enum"][0] == "1 ROOM"
    assert "resale_price" not in row
    assert "/docs" not in document["paths"]
    told = document["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in told.values():
        schemas(served.contract, 10).feedback.validate_python(example["value"])


# a client is generated from it
def test_the_document_says_what_every_answer_holds(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    answers = {
        path: content["schema"]
        for path, operations in document["paths"].items()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        for media_type, content in answer.get("content", {}).items()
        if status.startswith("2") and media_type == "application/json"
    }
    assert answers.keys() == (SCOPES.keys() | {"/health", "/ready"}) - {"/metrics"}
    assert all("$ref" in schema for schema in answers.values()), answers
    for path, known in (("/v1/predictions", BatchPredictions), ("/v1/model-info", ModelInfo), ("/ready", Ready)):
        known.model_validate_json(api.client.get(path).content, extra="forbid")


# without the network the page would be blank, and with it another host would learn who reads it
def test_the_page_of_the_document_asks_nothing_of_other_hosts(api: Api) -> None:
    page = api.client.get("/docs")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3 and all(link.startswith("/docs/static/") for link in loaded), loaded
    assert "://" not in page.text
    for link in loaded:
        assert api.client.get(link).status_code == 200
    assert api.client.get("/docs/static/redoc.standalone.js").status_code == 404


def test_a_filter_that_is_none_is_refused_instead_of_giving_every_prediction(api: Api) -> None:
    refused = api.client.get("/v1/predictions", params={"town": "BEDOK"})
    assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == "town"


def test_fuzzed_bodies_never_fail_the_service(api: Api, example: dict[str, Any]) -> None:
    """2,000 bodies that are almost right; `python -m benchmarks.api` sends 20,000."""

    def ask(body: bytes) -> tuple[bytes, httpx.Response]:
        return body, api.client.post("/v1/predict", content=body, headers=JSON)

    statuses: dict[int, int] = {}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, fuzzed(example, random.Random(1), 2_000)))
    for body, answer in answers:
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code in {200, 400, 413, 422}, (answer.status_code, body[:500], answer.text[:500])
    assert statuses[200] > 50 and statuses[422] > 200 and statuses[400] > 50, statuses


NONSENSE: list[Any] = [
    None, True, False, 0, -1, 1e308, -1e308, 1e-320, 2**63, 10**40, "", " ", "NaN", "x" * 600, "\u0000", "\ud7ff", "é",
    "'; --",    [], [1], {}, {"a": 1}, "2023-12", "0000-00", "9999-99", 3.5,
]  # fmt: skip


def fuzzed(example: dict[str, Any], rng: random.Random, n: int) -> list[bytes]:
    """Bodies near the example: fields changed, dropped or added, and bytes of the text overwritten."""
    out = []
    for _ in range(n):
        row = dict(example)
        for _ in range(rng.choice([0, 1, 1, 2, 5])):
            name = rng.choice([*row, "extra"]) if row else "extra"
            if rng.random() < 0.2:
                row.pop(name, None)
            else:
                row[name] = rng.choice(NONSENSE)
        value: Any = row
        if rng.random() < 0.3:
            value = {"rows": [row, rng.choice([*NONSENSE, example])]}
        body = bytearray(json.dumps(value).encode())
        if rng.random() < 0.2:
            for _ in range(rng.randint(1, 4)):
                body[rng.randrange(len(body))] = rng.randrange(256)
        if rng.random() < 0.05:
            del body[rng.randrange(len(body)) :]
        out.append(bytes(body))
    return out


def test_keys_scopes_and_rates(served: Home, example: dict[str, Any]) -> None:
    reader, reader_line = new_key("reader", "predict")
    writer, writer_line = new_key("writer", "feedback,admin")
    slow, slow_line = new_key("slow", "predict")
    assert reader not in reader_line and hashlib.sha256(reader.encode()).hexdigest() in reader_line
    keys = ";".join([reader_line, writer_line, slow_line])
    with running(served, keys=keys, rate_per_s="2", rate_burst="4") as guarded:
        guarded.ready()  # probes need no key

        def ask(key: str | None, route: str = "/v1/predict", **body: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            if route == "/metrics":
                return guarded.client.get(route, headers=headers)
            return guarded.client.post(route, json=body or example, headers=headers)

        assert problem(ask(None), 401) and ask(None).headers["www-authenticate"] == "Bearer"
        problem(ask(reader + "x"), 401)
        assert ask(reader).status_code == 200
        assert guarded.client.post("/v1/predict", json=example, headers={"x-api-key": reader}).status_code == 200
        problem(ask(writer), 403)
        problem(ask(reader, "/metrics"), 403)
        assert ask(writer, "/metrics").status_code == 200
        answers = [ask(slow) for _ in range(12)]
        limited = [a for a in answers if a.status_code == 429]
        assert 4 <= len(answers) - len(limited) < 12
        assert problem(limited[0], 429) and int(limited[0].headers["retry-after"]) >= 1
        time.sleep(int(limited[0].headers["retry-after"]))
        assert ask(slow).status_code == 200
        # the router takes a path with a line end behind it for the route itself
        for route in SCOPES:
            for method in ("GET", "POST"):
                problem(guarded.client.request(method, f"{route}%0A", json=example), 404)
    log = guarded.log.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"request_id", "route", "status", "ms", "caller"} <= lines[-3].keys() | lines[-4].keys() | lines[-8].keys()
    refused = {(line["status"], line["caller"]) for line in lines if line.get("status") in (401, 403, 429)}
    assert refused == {(401, "-"), (403, "writer"), (403, "reader"), (429, "slow")}, "the log says who was refused"
    assert (
        reader not in log
        and example["street_name"] not in log
        and "127.0.0.1" not in json.dumps([line for line in lines if line["message"] == "request"])
    )


def test_every_route_is_guarded_or_named_as_open(tmp_path: Path) -> None:
    app = create_app(Home(tmp_path, "hdb").settings)
    folder = "/docs/static"  # one route, of which the files are named
    routes = {cast("Route", route).path for route in app.routes}
    named = SCOPES.keys() | OPEN
    assert routes == {path for path in named if not path.startswith(folder)} | {folder}
    assert not SCOPES.keys() & OPEN


def test_it_listens_beyond_this_machine_only_with_keys() -> None:
    with pytest.raises(ValueError, match=r"without API keys the service listens on 127\.0\.0\.1 only"):
        ApiSettings(host="0.0.0.0", keys="")
    assert ApiSettings(host="0.0.0.0", keys=new_key("a", "predict")[1])
    assert ApiSettings(host="::1")


def test_a_wrong_line_of_keys_is_told_without_its_key() -> None:
    with pytest.raises(KeyFileError, match="unknown scope everything; scopes are predict, feedback, admin"):
        new_key("a", "predict,everything")


def test_a_wrong_line_is_told_by_its_number_in_its_source(tmp_path: Path) -> None:
    _, line = new_key("a", "predict")
    file = tmp_path / "keys"
    file.write_text(f"no key\n{line}\n", encoding="utf-8")
    with pytest.raises(KeyFileError, match=rf"^line 1 of {file} is not `name scope,scope sha256`"):
        Guard(ApiSettings(keys=line, keys_file=file))
    with pytest.raises(KeyFileError, match=r"^line 2 of HOUSING_API_KEYS is not"):
        Guard(ApiSettings(keys=f"{line}; no key", keys_file=file))
    file.write_bytes(b"# caf\xe9\n" + line.encode())
    with pytest.raises(KeyFileError, match=rf"^HOUSING_API_KEYS_FILE is {file.parent}, which cannot be read"):
        Guard(ApiSettings(keys_file=file.parent))
    with pytest.raises(KeyFileError, match=rf"^{file} is no UTF-8 text \(byte 6\); save it as UTF-8$"):
        Guard(ApiSettings(keys_file=file))
    file.write_text(f"# caf\u00e9\n{line}\n", encoding="utf-8")
    assert Guard(ApiSettings(keys="", keys_file=file))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[Errno 28] No space left on device: '/a/b c/d' -> '/e/f'", "[Errno 28] No space left on device: 'd' -> 'f'"),
        ('The file "/a b/c.duckdb" exists', 'The file "c.duckdb" exists'),
        ("/my data/runs/model.ubj was changed", "model.ubj was changed"),
        ("file:///a/b/model of v2 is gone", "model of v2 is gone"),
        ("sqlite:////a/b.db; cut off: '/a/b", "sqlite:b.db; cut off: 'b"),
        ("'file:///a b/model' is gone (/etc/x)", "'model' is gone (x)"),
        ("1/2 or a/b, 3 / 4; type: housing run -d hdb", "1/2 or a/b, 3 / 4; type: housing run -d hdb"),
    ],
)
def test_callers_are_told_no_paths(text: str, told: str) -> None:
    assert without_paths(text, Path("/my data")) == told

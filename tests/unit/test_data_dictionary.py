"""The data dictionary is generated and complete."""

from __future__ import annotations

from dagster_project.transform.data_dictionary import MODELS, PAGE, render


def test_the_page_says_what_is_true_now() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make docs`"


def test_every_model_is_described() -> None:
    page = render()
    models = [p for p in MODELS.rglob("*.sql") if "staging" not in p.parts]
    missing = [p.stem for p in models if f".{p.stem}\n" not in page]
    assert not missing, f"no description for {missing}: add them to the YAML beside the model"

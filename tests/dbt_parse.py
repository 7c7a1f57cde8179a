"""``make lint``: every dataset's dbt project must parse."""

from __future__ import annotations

import sys
import tempfile

from dagster_project.transform.dbt import DbtError, ensure_manifest
from ml.contract import available
from ml.settings import Settings


def main() -> int:
    for dataset in available():
        with tempfile.TemporaryDirectory() as home:
            try:
                ensure_manifest(Settings(home=home, dataset=dataset))  # pyright: ignore[reportArgumentType]
            except DbtError as error:
                sys.stderr.write(f"{dataset}: {error}\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

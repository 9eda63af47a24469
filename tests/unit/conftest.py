"""What several unit tests begin with."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow that is migrated already: to be copied, since migrating takes a second."""
    from cluster.tracking import library

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    library.import_mlflow()
    library.make_database(f"sqlite:///{path}")
    return path

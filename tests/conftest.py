"""What every test starts from: no MLflow store of another test in the environment."""

import pytest


@pytest.fixture(autouse=True)
def _no_store_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    # mlflow.set_tracking_uri writes the variable, which would win over the params of the next test. Setting it first
    # makes the undo of the patch remove whatever was written.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "unset")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

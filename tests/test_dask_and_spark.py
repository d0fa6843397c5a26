"""The examples with workers of Dask and Spark, started for real."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.mark.parametrize("module", ["dask", "pyspark"])
def test_the_example_scores_rows_in_processes_that_lease_cores(module):
    pytest.importorskip(module)
    if module == "pyspark" and not shutil.which("java"):
        pytest.skip("Spark needs Java")
    example = f"examples.{module.removeprefix('py')}_predict"
    done = subprocess.run(
        [sys.executable, "-m", example, "--rows", "8"], capture_output=True, text=True, check=True
    )
    assert "8 rows of 1000 outputs" in done.stdout

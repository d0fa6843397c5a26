"""tests.soak.server, for seconds instead of ten minutes."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.server


def test_clients_that_leave_reloads_and_a_stop_lose_nothing():
    """Whether memory grows takes minutes to see; that it fails where something is lost does not."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.soak.server", "--minutes", "0.2"]
        + ["--clients", "40", "--reloads", "8"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "\n0 failures" in ended.stdout
    for outcome in ("left while sending", "left while waiting", "failed loads", "refused"):
        assert outcome in ended.stdout

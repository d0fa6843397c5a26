"""CPU contention from other processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched.machine.contention import ContentionMonitor, read_busy_seconds

TICK = 1 / os.sysconf("SC_CLK_TCK")


def write_stat(root, *cpus):
    lines = ["cpu  " + " ".join(["9"] * 10), *(f"cpu{n} {words}" for n, words in cpus), "intr 1 2"]
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text("\n".join(lines))


def test_busy_time_excludes_idle_and_iowait(tmp_path):
    write_stat(tmp_path, (0, "1 2 4 8 16 32 64 128 0 0"), (1, "1 0 0 5 5 0 0 0 0 0"))
    assert read_busy_seconds(tmp_path, {0}) == pytest.approx((1 + 2 + 4 + 32 + 64 + 128) * TICK)
    assert read_busy_seconds(tmp_path, {0, 1}) == pytest.approx((231 + 1) * TICK)
    assert read_busy_seconds(tmp_path, {0, 2}) is None  # the kernel does not count CPU 2
    assert read_busy_seconds(tmp_path / "none", {0}) is None


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c"), max_size=80))
def test_a_malformed_proc_stat_is_no_error(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("odd")
    (root / "proc").mkdir()
    (root / "proc/stat").write_text("cpu0 " + text)
    found = read_busy_seconds(root, {0})
    assert found is None or found >= 0


def test_another_busy_process_is_seen():
    """Ratios of one run: alone we work; beside another process that works as well."""

    def work(seconds):
        monitor = ContentionMonitor()
        begin = os.times().user
        while os.times().user < begin + seconds:
            pass
        return monitor.others_share()

    alone = work(0.5)
    if alone is None:
        pytest.skip("this machine does not count busy time for each CPU")
    code = "print('up', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        beside = work(0.5)
        other.kill()
    assert beside > alone

"""The wheel in a chroot of Debian's arm64, and the suite's tests there, emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.arm64.build import PYTHON, ROOT

PACKAGES = (f"python{PYTHON}", "python3", "libstdc++6", "coreutils", "dash", "bash", "util-linux")
TESTS = (
    "queue",
    "groups",
    "backlog",
    "dispatch",
    "turnstile",
    "batching_native",
    "values",
    "errors",
    "engine",
    "compiled",
    "invocation",
    "request_options",
    "elastic",
    "resize",
    "trace",
    "stats",
    "pingpong",
    "partition",
    "topology",
    "doctor",
    "process",
    "stress",
)
"""Not those of what an event loop runs itself: no emulated run takes less than 30 us."""

_PLATFORMS = tuple(f"manylinux{glibc}_aarch64" for glibc in ("_2_28", "_2_27", "_2_17", "2014"))
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_INTERPRETER = "/usr/bin/qemu-aarch64-static"
# An ELF file of 64 bits, little-endian, executable or shared, for EM_AARCH64 (183).
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"

_CPU = "neoverse-n1"
# What Linux says of such a CPU; the emulator passes this machine's file through.
_CPUINFO = """processor\t: {cpu}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""

_SCRIPT = """
set -e
mount --make-rprivate /
cd "$1"
mount -t proc proc proc
mount --bind cpuinfo proc/cpuinfo
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs tmp
shift
exec chroot . /usr/bin/env -C /checkout "$@"
"""


def install(root: Path, wheel: Path) -> None:
    """The wheel, all that it needs, and the tests."""
    site = root / f"usr/local/lib/python{PYTHON}/dist-packages"
    packages = [str(wheel), "hypothesis", "ml_dtypes", "pytest", "pytest-timeout"]
    platforms = [f"--platform={name}" for name in (*_PLATFORMS, "linux_aarch64")]
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site)]
    command += ["--only-binary=:all:", f"--python-version={PYTHON}", *platforms, *packages]
    subprocess.run(command, check=True)
    checkout = root / "checkout"
    checkout.mkdir()
    # Not the package: the tests are to meet what the wheel has.
    for name in ("conftest.py", "pyproject.toml", "README.md", "tests", "docs", "examples"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, checkout / name)
    cpus = range(os.cpu_count() or 1)
    (root / "cpuinfo").write_text("".join(_CPUINFO.format(cpu=cpu) for cpu in cpus))


def run_tests(root: Path, names: Sequence[str]) -> int:
    """The tests of these names; returns pytest's exit status."""
    for name in ("proc", "sys", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    variables = {
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "QEMU_CPU": _CPU,
    }
    python = ["python3", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--timeout=900"]
    command = [*(f"{name}={value}" for name, value in variables.items()), *python]
    # Emulated, each of the bundled models takes minutes.
    command += ["-k", "not bundled", *(f"tests/test_{name}.py" for name in names)]
    with _emulated():
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", str(root), *command]
        ).returncode


@contextmanager
def _emulated() -> Iterator[None]:
    """The kernel runs aarch64's programs by the emulator meanwhile, if it does not anyway."""
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=True)
    name = "deepsched-arm64"
    # By Debian's package, or by a run that was killed.
    if any((_BINFMT / registered).exists() for registered in ("qemu-aarch64", name)):
        yield
        return
    # F: the emulator is opened now, since the chroot has none.
    (_BINFMT / "register").write_text(f":{name}:M::{_MAGIC}:{_MASK}:{_INTERPRETER}:F")
    try:
        yield
    finally:
        (_BINFMT / name).write_text("-1")

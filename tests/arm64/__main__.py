"""The package for Arm, on an x86-64 machine: python -m tests.arm64 [tests [NAME ...]]

    python -m tests.arm64              # the native core, cross-built; a warning is an error
    python -m tests.arm64 tests        # and the suite's TESTS, in a chroot of Debian's arm64
    python -m tests.arm64 tests queue  # of these, tests/test_queue.py

It needs what setup.py needs, a Python that Debian has, too, root for the tests, and

    apt-get install -y --no-install-recommends g++-aarch64-linux-gnu qemu-user-static

The tests run under QEMU's user emulation: aarch64 code, Debian's libraries and the wheels that pip
takes on Arm, on this machine's kernel. They try what the compiler, the libraries and onnxruntime's
kernels make of aarch64. They do not try

* Linux on Arm: sysfs, control groups and system calls are this kernel's; those for NUMA memory are
  refused, as in a sandbox.
* Weak memory orders. A load or a store of the emulated program is one of x86-64, so all are seen in
  program order, but for loads that overtake earlier stores. Even a load-acquire may overtake a
  store-release here, which Arm forbids (QEMU has its barriers before the one and after the other),
  so a lost wake-up would not have to be ours. `proofs/orders` tries all orders that C++ allows.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.arm64.build import build_wheel, unpack
from tests.arm64.chroot import PACKAGES, TESTS, install, run_tests


def main(arguments: list[str]) -> int:
    runs_tests, names = arguments[:1] == ["tests"], arguments[1:]
    if (arguments and not runs_tests) or not set(names) <= set(TESTS):
        sys.exit(f"usage: python -m tests.arm64 [tests [NAME ...]], of {', '.join(TESTS)}")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        root = Path(folder, "root")
        unpack(root, *(PACKAGES if runs_tests else ()))
        wheel = build_wheel(root, Path(folder))
        print(f"{wheel.name} is built without a warning", flush=True)
        if not runs_tests:
            return 0
        install(root, wheel)
        return run_tests(root, names or TESTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

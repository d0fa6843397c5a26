"""python -m tests.soak: see the package."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import tests.soak
from tests.soak.faults import FAULTS, faults_of
from tests.soak.growth import Growth
from tests.soak.kinds import save_kinds
from tests.soak.ledger import Ledger
from tests.soak.main_thread import MainThread, Struck
from tests.soak.rounds import run_round

_HANG_S = 300
"""How long a round may take; most take some seconds."""

_ISOLATED = "DEEPSCHED_SOAK_ISOLATED"


def main() -> int:
    """Exit code 1 if anything was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=tests.soak.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, help="so many, however long they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--faults", help=f"names, with commas; of {', '.join(FAULTS)}")
    parser.add_argument("--json", metavar="FILE", help="the report; - for stdout")
    args = parser.parse_args()
    chosen = None if args.faults is None else list(filter(None, args.faults.split(",")))
    if unknown := set(chosen or ()) - set(FAULTS):
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    _isolate()
    ledger = Ledger()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        growth = _soak(args, chosen, folder, ledger)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = {
        "seed": args.seed,
        "rounds": len(growth.anonymous),
        "seconds": round(time.monotonic() - began, 1),
        "counts": dict(sorted(ledger.counts.items())),
        "anonymous memory in MB, by round": [round(it / 1e6, 1) for it in growth.anonymous],
        "the last of each warning": ledger.warnings,
        "skipped": ledger.skipped,
        "breaches": ledger.breaches,
    }
    text = json.dumps(report, indent=1)
    if args.json == "-":
        print(text)
    elif args.json:
        Path(args.json).write_text(text + "\n")
    if args.json != "-":
        _print(report)
    return 1 if ledger.breaches else 0


def _isolate() -> None:
    """Starts anew with a /dev/shm of its own, if that can be: so what is left there is ours."""
    if os.environ.get(_ISOLATED):
        return
    os.environ[_ISOLATED] = "no"
    script = 'mount --make-rprivate / && mount -t tmpfs none /dev/shm && exec "$@"'
    tried = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if (
        shutil.which("unshare")
        and not subprocess.run([*tried, "true"], capture_output=True, check=False).returncode
    ):
        os.environ[_ISOLATED] = "yes"
        os.execvp(tried[0], [*tried, sys.executable, "-m", "tests.soak", *sys.argv[1:]])


def _soak(
    args: argparse.Namespace, chosen: list[str] | None, folder: Path, ledger: Ledger
) -> Growth:
    for name in ("models", "cache", "leases", "temporary"):
        (folder / name).mkdir(mode=0o700)
    os.environ["DEEPSCHED_CACHE_DIR"] = str(folder / "cache")
    os.environ["DEEPSCHED_CACHE_BYTES"] = str(4 << 20)  # so that entries are evicted
    os.environ["DEEPSCHED_LEASE_DIR"] = str(folder / "leases")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "temporary")
    _watch(ledger)
    main_thread = MainThread(ledger)
    kinds = save_kinds(str(folder / "models"))
    growth = Growth(ledger)
    end = time.monotonic() + args.minutes * 60
    number = args.first
    while time.monotonic() < end if args.rounds is None else number < args.first + args.rounds:
        ledger.round = number
        faulthandler.dump_traceback_later(_HANG_S, exit=True)
        name = f"{args.seed}/{number}"
        faults = faults_of(number) if chosen is None else {it: FAULTS[it] for it in chosen}
        ledger.guarded("round", run_round, name, faults, kinds, folder, ledger, main_thread)
        growth.look()
        number += 1
    faulthandler.cancel_dump_traceback_later()
    growth.judge()
    return growth


def _watch(ledger: Ledger) -> None:
    """What no caller sees: errors where nobody can raise them, and warnings."""

    class Warnings(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ledger.count(f"warnings: {record.msg}")
            ledger.warnings[record.msg] = record.getMessage()
            if "has closed the descriptor" in record.msg or record.levelno >= logging.ERROR:
                ledger.breach(f"logged: {record.getMessage()}")

    logging.getLogger().addHandler(Warnings(logging.WARNING))

    def unraisable(it: sys.UnraisableHookArgs) -> None:
        if isinstance(it.exc_value, (KeyboardInterrupt, Struck)):
            ledger.count("signals that came within a finalizer")
            return
        ledger.breach(
            f"unraisable in {it.object!r}: "
            + "".join(traceback.format_exception(it.exc_type, it.exc_value, it.exc_traceback))
        )

    sys.unraisablehook = unraisable
    threading.excepthook = lambda it: ledger.breach(f"in {it.thread}: {it.exc_value!r}")


def _print(report: dict) -> None:
    for what, number in report["counts"].items():
        print(f"{number:>9}  {what}")
    for fault, why in report["skipped"].items():
        print(f"skipped: {fault}: {why}")
    for breach in report["breaches"]:
        print("BREACH:", breach)
    memory = report["anonymous memory in MB, by round"]
    print(
        f"seed {report['seed']}: {report['rounds']} rounds in {report['seconds']} s, anonymous "
        f"memory {memory[:1]} MB after the first, {memory[-1:]} after the last, "
        f"{len(report['breaches'])} breaches"
    )


if __name__ == "__main__":
    sys.exit(main())

"""`deepsched lease`: which processes have which cores."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from deepsched.cli.files import to_json
from deepsched.formatting import printable
from deepsched.machine.leases import check_lease_file, holders
from deepsched.machine.sysfs import format_cpu_list

_EPILOG = """\
columns:
  pid      the process; ? if it lives in another PID namespace
  how      lease: it has these CPUs for itself; used: it uses them, and others may too
  CPUs     OS numbers of the hardware threads
  command  its command line

exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments, or a lease file that cannot be used
  141  output pipe closed early, as with `| head`
"""

_HEADERS = ("pid", "how", "CPUs", "command")


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Lists the live processes of deepsched that have cores, of those that share a lease file "
        "with this one: DEEPSCHED_LEASE_DIR sets its folder (unless set: /run/lock, "
        "XDG_RUNTIME_DIR or /dev/shm, whichever can be written first)."
    )
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(required=True, metavar="{list}")
    listing = actions.add_parser("list", help="list who has which cores")
    listing.add_argument("--json", action="store_true", help="print the result as JSON")
    listing.set_defaults(run=_list)


def _list(args: argparse.Namespace) -> None:
    check_lease_file()
    found = holders()
    if args.json:
        print(to_json([asdict(holder) for holder in found]))
        return
    if not found:
        print("no process of deepsched has cores")
        return
    rows = [
        _HEADERS,
        *(
            (
                str(holder.pid or "?"),
                "lease" if holder.is_lease else "used",
                format_cpu_list(holder.cpus),
                printable(holder.command),
            )
            for holder in found
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())

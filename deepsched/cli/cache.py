"""`deepsched cache`: lists and clears the compiled models and measurements on disk."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import time

from deepsched.cli.files import to_json
from deepsched.errors import OptionError
from deepsched.formatting import printable, shortened
from deepsched.models.cache import EXTERNAL_FILES, FILE_HASH, Cache, Item
from deepsched.models.locations import default_folder, sweep_temporary_folders

_EPILOG = """\
exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments, or a cache folder that cannot be used
  141  output pipe closed early, as with `| head`
"""

_NOTES = (EXTERNAL_FILES, FILE_HASH)
_HEADERS = ("kind", "batch", "MB", "last used", "key")
_LEAST_MODEL = 12
_KEY = 8
"""Characters of a key, which is 32 of them: enough to find its folder; --json has them all."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Lists or clears the compiled models, what was measured of them (advice; run lengths for "
        "the elastic scheduler), and notes on their files (hash; external data), which make the "
        "next start fast. DEEPSCHED_CACHE_DIR sets the folder, DEEPSCHED_CACHE_BYTES its size "
        "limit (10 GiB unless set; least recently used are evicted first)."
    )
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(required=True, metavar="{list,clear,path}")
    listing = actions.add_parser("list", help="list them, most recently used first")
    listing.add_argument(
        "--json", action="store_true", help="print the result as JSON; sizes in bytes"
    )
    listing.set_defaults(run=_list)
    clear = actions.add_parser("clear", help="remove everything that no process uses")
    clear.set_defaults(run=_clear)
    actions.add_parser("path", help="print the folder").set_defaults(run=_path)


def _cache() -> Cache:
    try:
        return Cache(default_folder())
    except OSError as error:
        raise OptionError(
            f"the cache cannot be used: {error}; DEEPSCHED_CACHE_DIR chooses another folder"
        ) from error


def _list(args: argparse.Namespace) -> None:
    items = _cache().list()
    if args.json:
        print(to_json([item._asdict() for item in items]))
        return
    # Plain columns, a line for each item: at 80 columns borders leave no room for paths.
    rows = [("model", *_HEADERS), *(_row(item) for item in items)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * len(_HEADERS)
        widths[0] = min(widths[0], max(_LEAST_MODEL, room))
    for model, *others in rows:
        cells = (shortened(model, widths[0]), *others)
        print("  ".join(map(str.ljust, cells, widths)).rstrip())
    num_models = sum(item.kind == "model" for item in items)
    num_notes = sum(item.kind in _NOTES for item in items)
    num_measurements = len(items) - num_models - num_notes
    megabytes = f"{sum(item.num_bytes for item in items) / 1e6:.1f}"
    print(
        f"\n{num_models} models, {num_measurements} measurements, {num_notes} notes on files, "
        f"{megabytes} MB"
    )


def _row(item: Item) -> tuple[str, ...]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.used))
    return (
        printable(item.model),
        item.kind,
        "" if item.kind in _NOTES else str(item.batch_size or "any"),
        f"{item.num_bytes / 1e6:.1f}",
        "in use" if item.is_in_use else used,
        item.key[:_KEY],
    )


def _clear(args: argparse.Namespace) -> None:
    cache = _cache()
    num_removed = cache.clear()
    left = cache.list()
    num_in_use = sum(item.is_in_use for item in left)
    num_stuck = len(left) - num_in_use
    num_folders = sweep_temporary_folders()
    print(
        f"removed {num_removed}"
        + (f"; {num_in_use} in use" if num_in_use else "")
        + (f"; {num_stuck} cannot be removed from {cache.folder}" if num_stuck else "")
        + (f"; {num_folders} temporary folders of killed processes" if num_folders else "")
    )


def _path(args: argparse.Namespace) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # its very bytes, for scripts
    print(default_folder())

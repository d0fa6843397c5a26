"""`deepsched cache`: lists and clears the compiled models and measurements on disk."""

from __future__ import annotations

import argparse
import time

from rich.table import Column, Table

from deepsched.cli.console import Console
from deepsched.cli.files import to_json
from deepsched.errors import OptionError
from deepsched.models.cache import Cache
from deepsched.models.locations import default_folder, sweep_temporary_folders

_EPILOG = """\
exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments, or a cache folder that cannot be used
  141  output pipe closed early, as with `| head`
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Lists or clears the compiled models, and what was measured of them (advice; run lengths "
        "for the elastic scheduler), which make the next start fast. DEEPSCHED_CACHE_DIR sets the "
        "folder, DEEPSCHED_CACHE_BYTES its size limit (10 GiB unless set; least recently used are "
        "evicted first)."
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
    table = Table(
        Column("model", overflow="fold"),
        "kind",
        "batch",
        "MB",
        "last used",
        "in use",
        Column("key", overflow="fold"),
    )
    for item in items:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.used))
        in_use = "yes" if item.is_in_use else ""
        batch = "any" if item.batch_size is None else str(item.batch_size)
        megabytes = f"{item.num_bytes / 1e6:.1f}"
        table.add_row(item.model, item.kind, batch, megabytes, used, in_use, item.key)
    Console().print(table)
    num_models = sum(item.kind == "model" for item in items)
    megabytes = f"{sum(item.num_bytes for item in items) / 1e6:.1f}"
    print(f"{num_models} models, {len(items) - num_models} measurements, {megabytes} MB")


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
    print(default_folder())

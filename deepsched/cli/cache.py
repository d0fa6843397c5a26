"""`deepsched cache`: lists and clears the compiled models on disk."""

from __future__ import annotations

import argparse
import time

from rich.table import Column, Table

from deepsched.cli.console import Console
from deepsched.cli.files import to_json
from deepsched.errors import OptionError
from deepsched.models.cache import Cache, default_folder

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
        "Lists or clears the compiled models that make the next start fast. DEEPSCHED_CACHE_DIR "
        "sets the folder, DEEPSCHED_CACHE_BYTES its size limit (10 GiB unless set; least recently "
        "used entries are evicted first)."
    )
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(required=True, metavar="{list,clear,path}")
    listing = actions.add_parser("list", help="list the entries, most recently used first")
    listing.add_argument(
        "--json", action="store_true", help="print the result as JSON; sizes in bytes"
    )
    listing.set_defaults(run=_list)
    clear = actions.add_parser("clear", help="remove all entries that no process uses")
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
    infos = _cache().list()
    if args.json:
        print(to_json([info._asdict() for info in infos]))
        return
    table = Table(
        Column("model", overflow="fold"),
        "batch",
        "MB",
        "last used",
        "in use",
        Column("entry", overflow="fold"),
    )
    for info in infos:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.used))
        in_use = "yes" if info.is_in_use else ""
        batch = "any" if info.batch_size is None else str(info.batch_size)
        megabytes = f"{info.num_bytes / 1e6:.1f}"
        table.add_row(info.model, batch, megabytes, used, in_use, info.key)
    Console().print(table)
    print(f"{len(infos)} models, {sum(info.num_bytes for info in infos) / 1e6:.1f} MB")


def _clear(args: argparse.Namespace) -> None:
    cache = _cache()
    num_before = len(cache.list())
    num_removed = cache.clear()
    in_use = num_before - num_removed
    print(f"removed {num_removed}" + (f"; {in_use} in use" if in_use > 0 else ""))


def _path(args: argparse.Namespace) -> None:
    print(default_folder())

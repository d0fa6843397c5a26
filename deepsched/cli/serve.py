"""`deepsched serve`: models behind HTTP and gRPC."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepsched.errors import OptionError

_EPILOG = """\
examples:
  deepsched serve model.onnx
  deepsched serve model.onnx --host 0.0.0.0 --port 8000 --grpc-port 8001
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = "Serves MODEL over the Open Inference Protocol, REST and gRPC."
    parser.epilog = _EPILOG
    parser.add_argument("models", nargs="+", metavar="MODEL", help="path of an ONNX file")
    parser.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="of HTTP (default 8000)")
    parser.add_argument("--grpc-port", type=int, default=8001, help="of gRPC (default 8001)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Serves until SIGTERM."""
    try:
        from deepsched.server.main import serve
    except ModuleNotFoundError as error:
        raise OptionError(
            f"deepsched serve needs {error.name}; pip install 'deepsched[serve]'"
        ) from error
    from deepsched.context import Context
    from deepsched.server.repository import ModelSource, Repository
    from deepsched.server.settings import Settings

    sources = [ModelSource(Path(model).stem, Path(model)) for model in args.models]
    settings = Settings(host=args.host, port=args.port, grpc_port=args.grpc_port)
    with Context(scheduler="elastic") as context:
        serve(settings, Repository(sources, context))

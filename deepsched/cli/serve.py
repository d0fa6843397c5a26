"""`deepsched serve`: models behind the Open Inference Protocol, REST and gRPC."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from deepsched.cli.options import (
    add_custom_ops,
    add_num_cores,
    add_num_streams,
    add_option,
    add_rewrites,
    finite,
)
from deepsched.errors import OptionError

_EPILOG = """\
MODEL is an ONNX file, whose name without .onnx is what clients call the model; NAME=FILE gives
another one. NAME=FOLDER is one model with a folder for each version, FOLDER a repository of models
in Triton's layout: NAME/VERSION/model.onnx, with NAME/config.pbtxt if there is one.

POST /v2/repository/models/NAME/load opens a model anew, beside the old version, which answers what
it has; --watch does so when files change.

SIGTERM or Ctrl-C: the server is not ready any more, takes new requests for --lame-duck seconds,
answers what it has accepted, and ends. A second one ends it at once.

The file of --config has these options with _ for -, such as grpc_port, and models by name; see
docs/serving.md. Options of the command line count more.

exit codes:
  0    stopped; every accepted request was answered
  1    stopped after --grace seconds with requests still under way
  2    invalid arguments, a port in use, no model that can be served, or too few cores for --lease

examples:
  deepsched serve model.onnx
  deepsched serve resnet=a/model.onnx bert=b/model.onnx --host 0.0.0.0
  deepsched serve models/ --watch
  deepsched serve model.onnx --lease --num-cores 4
  deepsched serve --config models.yaml
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Serves models over the Open Inference Protocol (KServe v2, Triton), REST and gRPC, on one "
        "set of streams. Needs: pip install 'deepsched[serve]'"
    )
    parser.epilog = _EPILOG
    parser.add_argument("models", nargs="*", metavar="[NAME=]MODEL", help="file or folder")
    parser.add_argument("--config", metavar="FILE.yaml", help="options and models from a file")
    parser.add_argument(
        "--watch", action="store_true", default=None, help="load models when their files change"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="log only warnings and errors")
    _add_network(parser.add_argument_group("network"))
    streams = parser.add_argument_group("streams")
    add_option(
        streams,
        "-s",
        "--scheduler",
        metavar="NAME",
        help="elastic, multi_stream or single_stream (default elastic; with instance groups in "
        "config.pbtxt multi_stream)",
    )
    add_num_cores(streams)
    streams.add_argument(
        "--lease",
        dest="cores",
        action="store_const",
        const="lease",
        help="take whole cores that no other process of deepsched has, and keep them (in the file "
        "of --config: cores: lease)",
    )
    add_option(
        streams,
        "--lease-timeout",
        type=finite,
        metavar="S",
        help="seconds to wait for cores that others have (default 0: ends at once, naming them)",
    )
    add_num_streams(streams, "requests that run in parallel (default: one per core)")
    add_option(
        streams,
        "--queue-capacity",
        type=int,
        metavar="N",
        help="requests that may wait; more are refused with 503 (default 1024)",
    )
    models = parser.add_argument_group("models")
    add_custom_ops(models)
    add_rewrites(models)
    parser.set_defaults(rewrites=None)  # the file of --config may say another
    _add_observing(parser.add_argument_group("observing"))
    _add_stop(parser.add_argument_group("stop"))
    _add_security(parser.add_argument_group("security"))
    parser.set_defaults(run=run)


def _add_network(group: argparse._ActionsContainer) -> None:
    add_option(
        group,
        "--host",
        help="address to listen at (default 127.0.0.1: this machine alone; 0.0.0.0: all networks)",
    )
    add_option(group, "--port", type=int, metavar="N", help="of HTTP; 0: any free (default 8000)")
    add_option(
        group, "--grpc-port", type=int, metavar="N", help="of gRPC; 0: any free (default 8001)"
    )
    for flag, unit, meaning in (
        ("--max-body-bytes", "N", "of a request (default 128 MiB)"),
        ("--max-json-bytes", "N", "of the JSON in a request (default 32 MiB)"),
        ("--max-connections", "N", "of HTTP at once (default 1000)"),
        ("--max-grpc-requests", "N", "of gRPC at once (default 2048)"),
    ):
        add_option(group, flag, type=int, metavar=unit, help=meaning)
    for flag, meaning in (
        ("--header-timeout", "for a request's headers (default 10)"),
        ("--body-timeout", "for a request's body (default 60)"),
        ("--keep-alive", "that a connection without requests is kept (default 60)"),
    ):
        add_option(group, flag, type=finite, metavar="S", help=f"seconds {meaning}")


def _add_observing(group: argparse._ActionsContainer) -> None:
    add_option(
        group,
        "--access-log",
        metavar="FORMAT",
        help="a line on stdout for each request: json or text (default: none)",
    )
    add_option(
        group,
        "--trace-share",
        type=finite,
        metavar="SHARE",
        help="record this share of the requests, 0 to 1, as OpenTelemetry's spans, and those whose "
        "client asks for it; needs pip install 'deepsched[otel]' (default: none)",
    )


def _add_stop(group: argparse._ActionsContainer) -> None:
    add_option(
        group,
        "--lame-duck",
        type=finite,
        metavar="S",
        help="seconds after SIGTERM in which requests are still taken (default 5)",
    )
    add_option(
        group,
        "--grace",
        type=finite,
        metavar="S",
        help="seconds after those in which accepted requests are answered (default 30)",
    )


def _add_security(group: argparse._ActionsContainer) -> None:
    for flag, meaning in (
        ("--tls-cert", "certificate chain in PEM: TLS on both ports"),
        ("--tls-key", "its key in PEM, not encrypted"),
        ("--tls-client-ca", "authorities of clients' certificates in PEM: mutual TLS"),
        (
            "--token-file",
            "token that loading, unloading, shared memory and configuration need (or "
            "DEEPSCHED_SERVE_TOKEN)",
        ),
    ):
        add_option(group, flag, metavar="FILE", help=meaning)


_NOT_OPTIONS = ("models", "config", "quiet", "parser", "run")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM."""
    try:
        from deepsched.server.assembly import assemble
        from deepsched.server.main import serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("deepsched"):
            raise
        raise OptionError(
            f"deepsched serve needs {error.name}; install it: pip install 'deepsched[serve]'"
        ) from None
    logging.basicConfig(
        level=logging.WARNING if args.quiet else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    given: dict[str, Any] = {
        name: value
        for name, value in vars(args).items()
        if name not in _NOT_OPTIONS and value not in (None, [])
    }
    return serve(assemble(args.models, args.config, given))

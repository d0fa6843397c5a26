"""Ray Serve: replicas that answer on ports of their own, by the server of `deepsched serve`.

Ray's proxy passes some hundred requests a second. Here the requests go past it: Ray places the
replicas, looks after them and says where they are; clients talk to them directly, by the Open
Inference Protocol.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
import ray.util
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from deepsched.errors import ModelError, OptionError
from deepsched.ray.deployments import LEASE_SECONDS, deployment_options, name_of
from deepsched.ray.health import PROBE_SECONDS, Health

if TYPE_CHECKING:
    from deepsched.server.assembly import Assembly
    from deepsched.server.main import Serving

_END_SECONDS = 10.0
"""From the server's last answer to the end of its process."""


class Address(NamedTuple):
    """Where a replica answers."""

    http: str
    """Such as http://10.0.0.7:41234."""
    grpc: str
    """Such as grpc://10.0.0.7:41235; a gRPC channel takes it without grpc://."""
    node: str
    """Ray's id of the node."""
    replica: str
    """Ray's id of the replica."""


def addresses(handle: Any, timeout: float = 10.0) -> list[Address]:
    """Where the replicas of an application of `server_application` answer now.

    Replicas that have died, that are stopping, or that do not answer in time are left out; at times
    there is none. It asks each: ask again when one cannot be reached, not for each request.

    Args:
        handle: what serve.run or serve.get_app_handle returns.
        timeout: seconds.
    """
    try:
        answers = handle.broadcast("address").results(timeout_s=timeout, return_exceptions=True)
    except (DeploymentUnavailableError, TimeoutError):
        return []
    return [it for it in answers if isinstance(it, Address)]


class ServerReplica:
    """`deepsched serve` on leased cores; `server_application` makes a deployment of it.

    Args:
        models: as on the command line.
        options: of the server, with `num_cores`.

    Raises:
        ModelError: a model cannot be opened.
        OptionError, LeaseError: see `deepsched serve`.
    """

    def __init__(self, models: tuple[str, ...], options: Mapping[str, Any]) -> None:
        from deepsched.server.assembly import assemble

        node_address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call,unused-ignore]
        given = {
            "host": node_address,
            "port": 0,
            "grpc_port": 0,
            "cores": "lease",
            "lease_timeout": LEASE_SECONDS,
            **options,
        }
        config = given.pop("config", None)
        self._server = _ServerThread(assemble(models, config, given))
        streams = self._server.serving.server.repository.streams
        self._health = Health(name_of(models[0]) if models else "model", streams.shared)
        context = serve.get_replica_context()
        self._deployment = context.deployment, context.app_name
        self._address = _address(self._server.serving, node_address, context.replica_tag)

    async def address(self) -> Address | None:
        """Where it answers; None once it is stopping."""
        return None if self._server.serving.server.is_stopping else self._address

    async def __call__(self, request: Any) -> list[dict[str, str]]:
        """By Ray's HTTP proxy: the addresses of all replicas, as JSON, for balancers and clients
        that are not of Ray."""
        handle = serve.get_deployment_handle(*self._deployment)
        answers = await handle.broadcast("address").results_async(
            timeout_s=PROBE_SECONDS, return_exceptions=True
        )
        return [it._asdict() for it in answers if isinstance(it, Address)]

    async def check_health(self) -> None:
        """Called by Ray; an exception has the replica replaced, as has a server that does not come
        to answer."""
        await self._server.run(self._health.check(self._ask))

    async def _ask(self) -> None:
        """A request for each model that serves, by the path of all."""
        from deepsched.server.errors import ModelNotFound, NotReady

        server = self._server.serving.server
        for name in {version.name for version in server.repository.serving()}:
            with suppress(ModelNotFound, NotReady):  # unloaded since
                version = server.repository.get(name)
                engine = version.engine
                values = zip(engine.input_names, engine.generate_random_inputs(), strict=True)
                await server.inference.run(version, dict(values), PROBE_SECONDS, 1)

    async def __del__(self) -> None:
        """Called by Ray when the replica is to go: answers what it has accepted, then gives its
        cores back."""
        if hasattr(self, "_server"):
            await asyncio.to_thread(self._server.stop)


def _address(serving: Serving, node_address: str, replica: str) -> Address:
    """As other machines see it."""

    def seen(host: str, port: int) -> tuple[str, int]:
        return (node_address if host in ("0.0.0.0", "::") else host), port

    http, grpc = serving._replace(http=seen(*serving.http), grpc=seen(*serving.grpc)).addresses
    if serving.server.settings.tls_cert is not None:
        http = http.replace("http:", "https:", 1)
    return Address(http, grpc, ray.get_runtime_context().get_node_id(), replica)


class _ServerThread:
    """A server on a thread of its own: neither event loop keeps the other waiting."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._started: Future[Serving] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._serve, name="deepsched-server", daemon=True)
        self._thread.start()
        self.serving = self._started.result()

    def _serve(self) -> None:
        try:
            from deepsched.server.main import serve_until

            serve_until(self._until_stop, self._assembly, self._tell)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _until_stop(self) -> None:
        self._loop, self._stop_asked = asyncio.get_running_loop(), asyncio.Event()
        await self._stop_asked.wait()

    def _tell(self, serving: Serving) -> None:
        repository = serving.server.repository
        if not serving.server.is_ready:
            reasons = [f"{it.name}: {it.reason}" for it in repository.index() if it.reason]
            raise ModelError(f"not every model can be served: {'; '.join(reasons)}")
        self._started.set_result(serving)

    async def run(self, work: Any) -> None:
        """Runs a coroutine on the server's event loop."""
        assert self._loop is not None
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def stop(self) -> None:
        """As SIGTERM stops `deepsched serve`; returns at its end."""
        if self._thread.is_alive():
            assert self._loop is not None and self._stop_asked is not None
            with suppress(RuntimeError):  # it has ended meanwhile
                self._loop.call_soon_threadsafe(self._stop_asked.set)
        self._thread.join()


def server_application(
    *models: str,
    num_cores: int = 1,
    num_replicas: int | None = None,
    deployment: Mapping[str, Any] | None = None,
    **options: Any,
) -> serve.Application:
    """Models as an application of Ray Serve whose replicas answer on ports of their own.

    Each replica is `deepsched serve` on `num_cores` leased cores of the node where Ray places it,
    listening at the node's address on ports that are free. `addresses(handle)` says where, and so
    does a GET of the application's route. Needs the extra `serve`, too.

    Args:
        models: as on the command line of `deepsched serve`: [NAME=]MODEL, a file or a folder on
            every node.
        num_cores: cores of each replica.
        num_replicas: how many. Not "auto", since Ray does not see the requests.
        deployment: further options of Ray Serve's deployment; see `application`.
        options: those of `deepsched serve`, with _ for -, such as `scheduler`, `lame_duck` and
            `token_file`. Unless they are given, `host` is the node's address, `port` and
            `grpc_port` are 0, `cores` is "lease". `config` is a file as for --config, which counts
            less than all of these.

    Raises:
        OptionError: an option is not known or not possible, or the extra `serve` is not installed.

    Example:
        handle = serve.run(server_application("model.onnx", num_cores=4, num_replicas=2))
        urls = [address.http for address in addresses(handle)]
    """
    try:
        from deepsched.server.assembly import OPTIONS
        from deepsched.server.settings import Settings
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("deepsched"):
            raise
        raise OptionError(
            f"ports of replicas need {error.name}; install it: pip install 'deepsched[ray,serve]'"
        ) from None
    if unknown := options.keys() - {*OPTIONS, "config"}:
        raise OptionError(f"deepsched serve has no option {min(unknown)!r}")
    if isinstance(num_replicas, str):
        raise OptionError(
            f"num_replicas must be a number, got {num_replicas!r}: Ray does not see requests that "
            "do not pass it, so it cannot choose one"
        )
    settings = Settings()
    seconds = [options.get(name, getattr(settings, name)) for name in ("lame_duck", "grace")]
    defaults = {"graceful_shutdown_timeout_s": sum(seconds) + _END_SECONDS}
    name = name_of(models[0].rpartition("=")[2] if models else "model")
    built = deployment_options(name, num_cores, num_replicas, defaults, deployment)
    return serve.deployment(**built)(ServerReplica).bind(
        models, {"num_cores": num_cores, **options}
    )

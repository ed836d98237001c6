"""A server from start to stop: what is opened, in which order, and closed again."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fleetfit.core.children import Limits
from fleetfit.core.errors import FleetfitError, InvalidInput
from fleetfit.proto.trust import split_address
from fleetfit.server.compute import Compute, Found, find_compute
from fleetfit.server.engine.engine import Engine, Settings
from fleetfit.server.engine.executor import LocalExecutor
from fleetfit.server.engine.lookup import newest_id
from fleetfit.server.install.installer import Installers, Offered
from fleetfit.server.security.authority import Authority
from fleetfit.server.security.credentials import leave_credential, remove_credential
from fleetfit.server.security.enrolment import EnrolmentTokens
from fleetfit.server.security.people import People
from fleetfit.server.services.listeners import (
    Listener,
    Parts,
    agent_credentials,
    agents_listener,
    people_credentials,
    people_listener,
)
from fleetfit.server.state import StateFolder, hold_state
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import start_after

_log: Final = logging.getLogger("fleetfit.server")
NOWHERE: Final = "none"
# Devices that fetch at the same time; the others are told to try again, and do.
_MOST_FETCHING: Final = 64


@dataclass(frozen=True)
class Options:
    """What `fleetfit server` was asked for. Addresses are `HOST:PORT`; `web` may be empty (no pages).

    `install_listen` is where devices fetch their agent: `none` for nowhere, empty for the port three above `listen`'s.
    """

    listen: str
    agent_listen: str
    web: str
    state: Path
    install_listen: str = ""
    settings: Settings = field(default_factory=Settings)
    task_limits: Limits = field(default_factory=Limits)
    compute: Compute = "cpu"
    dev: bool = False
    new_token: bool = False


@dataclass(frozen=True)
class Running:
    """A server that serves. `token` is set where one was made for people on other machines."""

    listen: str
    agent_listen: str
    web: str
    install_listen: str
    token: str | None
    state: Path

    def public(self) -> dict[str, str | None]:
        """Where it listens."""
        return {
            "listen": self.listen,
            "agent_listen": self.agent_listen,
            "web": self.web or None,
            "install_listen": self.install_listen or None,
        }


async def serve(options: Options, ready: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises FleetfitError where it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with run_server(options) as running:
            ready(running)
            await stop.wait()
            _log.info("stopping")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def run_server(options: Options) -> AsyncIterator[Running]:
    """A server for as long as the context lasts. Raises FleetfitError where it cannot start."""
    check_addresses(options)
    async with AsyncExitStack() as stack:
        state = stack.enter_context(hold_state(options.state))
        compute = await _find_compute(state, options)
        if options.compute != "cpu":
            _log.info("%s", compute.sentence())
        options = replace(options, settings=replace(options.settings, cuda=compute.device))
        parts, database = await asyncio.to_thread(_open, state, options)
        stack.callback(database.close)
        agents = agents_listener(parts)
        # Also when something fails before they are started: a bound port must be free again.
        stack.push_async_callback(agents.stop)
        hosts = [split_address(address)[0] for address in (options.listen, options.agent_listen)]
        identity = parts.authority.certify_server(hosts)
        # Bound before anything runs: a port that is taken must not start jobs first.
        agents.bind(options.agent_listen, agent_credentials(identity, parts.authority.pem))
        offered = await _offer_installers(stack, state, options)
        people = people_listener(parts, told_address(agents.address), offered)
        stack.push_async_callback(people.stop)
        people.bind(options.listen, people_credentials(identity))
        for listener in (agents, people):
            if options.dev:
                listener.reflect()
        token = await asyncio.to_thread(parts.people.remote_token, renew=options.new_token)
        await parts.engine.start()
        stack.push_async_callback(parts.engine.stop)
        web = ""
        if options.web:
            # Imported here: most servers have no pages.
            from fleetfit.server.web.serving import serve_pages

            web = await stack.enter_async_context(serve_pages(parts.engine, options.web))
        for listener in (agents, people):
            stack.push_async_callback(listener.stop)
            await listener.start()
        _leave_credential(stack, people, parts, state, options)
        installing = offered.address if offered is not None else ""
        running = Running(people.address, agents.address, web, installing, token, state.root)
        state.write_addresses(dict(running.public()))
        stack.callback(state.addresses.unlink, missing_ok=True)
        yield running


@dataclass(frozen=True)
class Checked:
    """What a check found. `ca` is the digest of the server's own authority."""

    state: Path
    ca: str
    free_bytes: int
    compute: Found

    def public(self) -> dict[str, object]:
        """All of it, to be written as JSON."""
        device = self.compute.device
        compute = {"device": None if device is None else device.model_dump(), "reason": self.compute.reason}
        return {"state": str(self.state), "ca": self.ca, "free_bytes": self.free_bytes, "compute": compute}


async def check_server(options: Options) -> Checked:
    """Open everything that a server opens, without serving. Raises as `run_server` does."""
    with hold_state(options.state) as state:
        database = Database(state.database)
        try:
            authority = Authority(state.pki)
            ArtifactStore(state.artifacts)
            People(database, authority.digest).load()
        finally:
            database.close()
        compute = await _find_compute(state, options)
        return Checked(options.state, authority.digest, shutil.disk_usage(options.state).free, compute)


async def _find_compute(state: StateFolder, options: Options) -> Found:
    state.scratch.mkdir(exist_ok=True)
    return await find_compute(options.compute, state.scratch / "children", options.task_limits)


def check_addresses(options: Options) -> None:
    """Raise InvalidInput for addresses that cannot be, and for pages beyond this machine."""
    more = [address for address in (options.web, options.install_listen) if address not in ("", NOWHERE)]
    for address in (options.listen, options.agent_listen, *more):
        split_address(address)
    if options.web and not is_loopback(split_address(options.web)[0]):
        raise InvalidInput(
            f"the web pages ask nobody who they are, so they are served on this machine only; give --web 127.0.0.1:7602 "
            f"instead of {options.web}",
            field="web",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address of this host."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def told_address(address: str) -> str:
    """What devices are told of an address: where it stands for all of this machine's, the port alone."""
    host, port = split_address(address)
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            return f":{port}"
    return address


async def _offer_installers(stack: AsyncExitStack, state: StateFolder, options: Options) -> Offered | None:
    """Let devices fetch their agent. Only a port that was asked for by name must be free."""
    if options.install_listen == NOWHERE:
        return None
    # Imported here: a server without it is smaller.
    from fleetfit.server.install.serving import make_app
    from fleetfit.server.web.serving import serve_app

    installers = Installers(state.wheels)
    address = options.install_listen or install_address(options.listen)
    try:
        chosen = await stack.enter_async_context(serve_app(make_app(installers), address, _MOST_FETCHING))
    except FleetfitError as error:
        if options.install_listen:
            raise
        _log.warning("devices cannot fetch their agent here: %s; name another address with --install-listen", error)
        return None
    return Offered(installers, told_address(chosen))


def install_address(listen: str) -> str:
    """Where devices fetch their agent unless told otherwise: beside `listen`, the port three above; a free one for port 0."""
    host, port = split_address(listen)
    beside = port + 3 if 0 < port <= 65532 else 0
    return f"[{host}]:{beside}" if ":" in host else f"{host}:{beside}"


def _open(state: StateFolder, options: Options) -> tuple[Parts, Database]:
    database = Database(state.database)
    try:
        start_after(database.read_now(newest_id))
        authority = Authority(state.pki)
        if wrong := authority.clock_fault():
            _log.warning("%s", wrong)
        store = ArtifactStore(state.artifacts)
        state.scratch.mkdir(exist_ok=True)
        executor = LocalExecutor(state.scratch / "children", store.copy, options.task_limits)
        engine = Engine(database, store, executor, state.scratch, options.settings)
        people = People(database, authority.digest)
        people.load()
    except BaseException:
        database.close()
        raise
    return Parts(engine, store, authority, EnrolmentTokens(database, authority.digest), people), database


def _leave_credential(
    stack: AsyncExitStack, people: Listener, parts: Parts, state: StateFolder, options: Options
) -> None:
    token = parts.people.local_token(state.local_token)
    try:
        file = leave_credential(people.address, parts.authority.pem, token)
    except OSError as error:
        _log.warning(
            "no credential was left for this user (%s); use FLEETFIT_SERVER and FLEETFIT_TOKEN to reach this server",
            error,
        )
        return
    if split_address(options.listen)[1] == 0:
        # The port was chosen for this life only.
        stack.callback(remove_credential, file, token)

"""The whole server: listens at once, loads the models in a thread, says what it serves, ends with an exit code."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Sequence

from fermi.config import Settings
from fermi.errors import FermiError
from fermi.server.configured import configured, model_names
from fermi.server.errors import NotReadyError
from fermi.server.keys import KeyRing
from fermi.server.listener import Listener, bind
from fermi.server.log import configure_logging, logger
from fermi.server.registry import Entry, Registry

RULE = "─" * 72


def run(settings: Settings) -> int:
    """Serve the configured models until a signal; returns the exit code.

    Requests are answered 503 until the models are loaded. ConfigError if the address cannot be had; a model that
    cannot be loaded ends the server with code 1 and a line that says why.
    """
    configure_logging(settings.log)
    listening = bind(settings.openai.addr)
    host, port = listening.getsockname()[:2]
    scheme = "http" if settings.openai.ssl_certfile is None else "https"
    address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    if not KeyRing(settings.openai).closed and host not in ("127.0.0.1", "::1"):
        logger().warning("open to the network without a key", address=address, hint="set FERMI_API_KEYS or --host")
    registry = Registry()
    registry.starting = True
    listener = Listener(registry, settings, [listening])
    listener.on_start(lambda: logger().info("listening", address=address))  # and heeding signals
    tasks: list[asyncio.Task[None]] = []
    listener.on_start(lambda: tasks.append(listener.loop.create_task(_start(listener, settings, address))))
    code = listener.run()
    if any(thread.daemon for thread in threading.enumerate()):
        os._exit(code)  # the interpreter must not take itself apart under a thread that loads a model, or runs one
    return code


async def _start(listener: Listener, settings: Settings, address: str) -> None:
    """Load the models one after the other, unless requests are to do so, and then take requests."""
    state = listener.state
    gc.freeze()  # all that was imported stays: collections need not look at it ever again
    for given in model_names(settings):
        state.models.add(configured(given, settings))
    try:
        for entry in () if settings.openai.lazy else state.models.entries:
            try:
                await state.residency.load(entry)
                await state.residency.take(entry)  # and so keep it while the others come
            except NotReadyError as error:
                logger().warning("a model is left for later", model=entry.name, reason=str(error))
        if state.draining:  # a signal came first
            return
        if not settings.openai.lazy and not state.models.loaded:
            listener.fail()
            return
    except FermiError:  # the log has it
        if not state.draining:
            listener.fail()
        return
    await state.residency.survey()
    state.models.starting = False
    _announce(state.models.entries, settings, address)


def _announce(entries: Sequence[Entry], settings: Settings, address: str) -> None:
    """The banner: lines for people, an event for machines."""
    as_text = settings.log.format == "text" or (settings.log.format == "auto" and sys.stderr.isatty())
    for entry in entries:
        there = entry.resident.served.facts if entry.resident else {"model": entry.name, "memory": "not loaded"}
        facts = {**there, "address": f"{address}/v1"}
        if as_text:
            lines = [f"  {name:<8} {fact}" for name, fact in facts.items()]
            print("\n".join((RULE, "  fermi is ready", *lines, RULE)), file=sys.stderr, flush=True)
        else:
            logger().info("ready", **facts)

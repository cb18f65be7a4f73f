"""The whole server: listens at once, loads the models in a thread, says what it serves, ends with an exit code."""

from __future__ import annotations

import sys
import threading

from fermi.config import Settings
from fermi.errors import FermiError
from fermi.server.listener import Listener, bind
from fermi.server.log import configure_logging, logger
from fermi.server.registry import Registry
from fermi.server.served import Served

RULE = "─" * 72


def run(settings: Settings) -> int:
    """Serve the configured models until a signal; returns the exit code.

    Requests are answered 503 until the models are loaded. ConfigError if the address cannot be had; a model that
    cannot be loaded ends the server with code 1 and a line that says why.
    """
    configure_logging(settings.log)
    listening = bind(settings.openai.addr)
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if not settings.openai.api_keys and host not in ("127.0.0.1", "::1"):
        logger().warning("open to the network without a key", address=address, hint="set FERMI_API_KEYS or --host")
    registry = Registry()
    listener = Listener(registry, settings, [listening])
    listener.on_start(lambda: _load_in_thread(listener, registry, settings, address))
    logger().info("listening", address=address)
    return listener.run()


def _load_in_thread(listener: Listener, registry: Registry, settings: Settings, address: str) -> None:
    """Load the models one after the other, then hand all to the event loop at once."""

    def ready(models: list[Served]) -> None:
        for model in models:
            registry.add(model)
        _announce(models, settings, address)

    def load() -> None:
        from fermi.server.loading import load_served, model_names

        try:
            models = [load_served(name, settings) for name in model_names(settings)]
        except FermiError as error:
            logger().error("the model cannot be loaded", error=str(error))
            listener.loop.call_soon_threadsafe(listener.fail)
        except BaseException as error:
            logger().exception("the model cannot be loaded", error=repr(error))
            listener.loop.call_soon_threadsafe(listener.fail)
        else:
            listener.loop.call_soon_threadsafe(ready, models)

    threading.Thread(target=load, name="fermi-load", daemon=True).start()


def _announce(models: list[Served], settings: Settings, address: str) -> None:
    """The banner: lines for people, an event for machines."""
    as_text = settings.log.format == "text" or (settings.log.format == "auto" and sys.stderr.isatty())
    for model in models:
        facts = {**model.facts, "address": f"{address}/v1"}
        if as_text:
            lines = [f"  {name:<8} {fact}" for name, fact in facts.items()]
            print("\n".join((RULE, "  fermi is ready", *lines, RULE)), file=sys.stderr, flush=True)
        else:
            logger().info("ready", **facts)

"""Runs an application on uvicorn, and writes what happens as JSON lines."""

import asyncio
import json
import logging
import resource
import socket
import sys
import time
from typing import Any

import uvicorn
from fastapi import FastAPI

from gram_fast.errors import InputError, one_line
from gram_fast.serving.connections import patient_for
from gram_fast.serving.limits import Limits
from gram_fast.serving.places import with_spare

logger = logging.getLogger(__name__)

# Connections, and open files, beside those of requests.
_OTHERS = 64


class JsonLines(logging.Formatter):
    """A log record as a line of JSON: time, level, message, and what a request's record has beside it."""

    _OF_REQUEST = ("request_id", "path", "status", "seconds")

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in self._OF_REQUEST if hasattr(record, name)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Has all log records written to standard error as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.root.handlers[:] = [handler]
    logging.getLogger("gram_fast").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket of a server. Raises InputError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: expected an address to listen on: {one_line(error)}") from None


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """Makes a server, whose `run(sockets=[...])` serves until SIGTERM or SIGINT.

    It then answers what it has accepted, groups that are not full as they are.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        # Where a body is read, it has to come within the limit; this is for what nobody reads.
        http=patient_for(2 * limits.body_timeout),
        # Those that are judged, those that wait for their group, and some that ask how it is.
        limit_concurrency=_allowed(with_spare(limits.max_requests) + with_spare(limits.max_waiting) + _OTHERS),
        proxy_headers=False,  # anybody could claim to be somebody else
        timeout_keep_alive=75,  # longer than clients keep theirs, so that they do not meet one that is just closed
        timeout_graceful_shutdown=int(limits.timeout) + 1,
    )
    return _Server(config)


def _allowed(connections: int) -> int:
    """Connections that the process may have open, having asked for as many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(1, min(connections, soft - _OTHERS))


class _Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            model = self.config.app.state.service.model  # type: ignore[union-attr]
            logger.info("%s is served at http://%s:%d", model, f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: Any = None) -> None:
        self.config.app.state.service.is_closing = True  # type: ignore[union-attr]
        loop = asyncio.get_running_loop()
        answered = loop.run_in_executor(None, self.config.app.state.close)  # type: ignore[union-attr]
        await super().shutdown(sockets)
        await answered

"""Runs an application on uvicorn, and writes what happens as JSON lines."""

import asyncio
import json
import logging
import sys
import time
from typing import Any

import uvicorn
from fastapi import FastAPI

from gram_fast.serving.connections import patient_for
from gram_fast.serving.limits import Limits


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


def make_server(app: FastAPI, host: str, port: int, limits: Limits) -> uvicorn.Server:
    """Makes a server, whose `run` serves until SIGTERM or SIGINT.

    It then answers what it has accepted, groups that are not full as they are.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        http=patient_for(limits.body_timeout),
        # Connections: those that are judged, those that wait for their group, and some that ask how it is.
        limit_concurrency=limits.max_requests + limits.max_waiting + 64,
        timeout_graceful_shutdown=int(limits.timeout) + 1,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: Any = None) -> None:
        loop = asyncio.get_running_loop()
        answered = loop.run_in_executor(None, self.config.app.state.close)  # type: ignore[union-attr]
        await super().shutdown(sockets)
        await answered

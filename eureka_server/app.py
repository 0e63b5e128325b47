"""Puts the parts together: environment → settings → store → registry → application.

Each worker process builds its own, on the shared store. Importing this starts nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from catalogs import Runner
from eureka_compat.peers import Replicator
from eureka_http.counting import Requests
from eureka_http.exchange import LoopHooks
from eureka_server import dashboard, health, metrics, start
from eureka_server.access import Access
from eureka_server.command import version
from eureka_server.flask_door import admission, blueprint, is_of_gateway
from eureka_server.gateway import METRICS, OTHER, ROUTES, Gateway
from eureka_server.settings import Environment, SettingError, load
from eureka_server.start import give_up
from native_api.status import Server
from registry import (
    DEFAULT_NAMESPACE,
    Evictor,
    Recorder,
    Registry,
    StoreError,
    SystemClock,
    folder_of,
    is_remote,
    open_history,
    open_store,
)
from registry.figures import opened as open_figures
from registry.readers import opened as open_readers

log = logging.getLogger("server")

# Other workers have written what they did, unless they are held up.
OTHERS_LAG_MS = 750


class Door(Flask):
    """The WSGI application; the event-loop worker asks its ``loop_hooks`` first."""

    loop_hooks: LoopHooks


def from_environment(environ: Mapping[str, str]) -> Door:
    """The server that the environment asks for; where it cannot be, this worker ends.

    The reason is one line on stderr.
    """
    try:
        return create_app(load(environ))
    except (SettingError, StoreError, ValueError) as error:
        give_up(error)


def create_app(environment: Environment) -> Door:
    """The whole server in this process: loaded, evicting, ready to answer.

    Its parts are opened in order, and closed in reverse when the process ends; where one cannot be
    opened, at once.
    """
    with ExitStack() as parts:
        app = _assembled(environment, parts)
        atexit.register(parts.pop_all().close)
    return app


def _assembled(environment: Environment, parts: ExitStack) -> Door:
    # What closes a part is noted before it is started, for a start can fail halfway.
    access = Access(environment.access, threads=environment.threads)
    parts.callback(access.stop)
    access.start()
    accepts = environment.writes_while_away == "accept"
    store = open_store(environment.store_url, accepts_while_away=accepts)
    parts.callback(store.close)
    folder = folder_of(environment.store_url)
    figures = open_figures(metrics.SECTIONS, None if folder is None else folder / "figures")
    parts.callback(figures.close)
    recorder = _recorder(environment, parts)
    readers = open_readers(figures, folder)
    parts.callback(readers.close)
    registry = Registry(store, SystemClock(), environment.registry, recorder, figures, readers)
    registry.start()
    if recorder is not None:
        recorder.start(registry)
    evictor = Evictor(registry, store, leave=lambda: os.kill(os.getpid(), signal.SIGTERM))
    parts.callback(evictor.stop)
    evictor.make_good()
    evictor.start()
    runner = Runner(
        registry,
        [(each.make, each.source, each.terms) for each in environment.catalogs],
        is_open=environment.access.mode == "none",
    )
    parts.callback(runner.stop)
    runner.start()
    replicator = Replicator(registry, environment.peers)
    parts.callback(replicator.stop)
    replicator.start()
    measured = metrics.Metrics(
        registry,
        version=version(),
        most_applications=environment.metrics_applications,
        catalogs=runner.reports,
        peers=replicator.report,
    )
    parts.callback(measured.stop)
    app = Door(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    writes_wait = is_remote(environment.store_url)
    gateway = Gateway(
        registry,
        environment.eureka,
        environment.native,
        access,
        lambda: [asdict(report) for report in runner.reports()],
        replicator,
        Server(
            version=version(),
            workers=environment.workers,
            began=start.BEGAN,
            store_url=environment.store_url,
            state=registry.store_state,
            check=registry.check,
            warnings=environment.warnings,
            delta_enabled=environment.eureka.delta_enabled,
            samples=measured.samples,
            # Without accounts a request can name none but the default one.
            namespaces=(lambda: (DEFAULT_NAMESPACE,))
            if environment.access.mode == "none"
            else registry.namespaces,
        ),
        Requests(ROUTES, figures.numbers(metrics.REQUESTS)),
        threads=environment.threads,
        writes_wait=writes_wait,
    )
    measured.start(gateway.watchers, gateway.fetches.flush)
    app.register_blueprint(blueprint(gateway, environment.threads))
    app.register_blueprint(
        health.blueprint(registry, actuator=environment.actuator, is_open=replicator.is_open)
    )
    app.register_blueprint(metrics.blueprint(measured, actuator=environment.actuator))
    if environment.dashboard:
        app.register_blueprint(dashboard.blueprint(environment.dashboard_path))
    _add_errors(app)
    _count_others(app, gateway.requests)
    app.loop_hooks = LoopHooks(
        fast_lane=gateway.fast_lane,
        lane=gateway.lane,
        settle=gateway.settle,
        settle_apart=gateway.settle_apart if writes_wait else None,
        admit=admission(app, gateway),
        tick=gateway.tick,
        began=measured.follow,
        gave=gateway.fetches.gave,
        gone=gateway.fetches.gone,
    )
    app.wsgi_app = _without_offers(app.wsgi_app)  # type: ignore[method-assign]
    return app


def _recorder(environment: Environment, parts: ExitStack) -> Recorder | None:
    """Who keeps the history; nobody where that is not wanted, or it cannot be opened."""
    settings = environment.history
    if not settings.is_kept:
        return None
    try:
        history = open_history(environment.store_url, settings.most_bytes)
    except StoreError as error:
        log.error("the registry goes on without its history: %s", error)
        return None
    others = OTHERS_LAG_MS if environment.workers > 1 else 0
    recorder = Recorder(history, SystemClock(), keep_ms=settings.keep_ms, others_lag_ms=others)
    parts.callback(recorder.stop)
    return recorder


def _without_offers(application: Callable[..., Any]) -> Callable[..., Any]:
    """Pass over offers to change the protocol, as is allowed (RFC 9110, 7.8).

    Flask looks for other routes where one is made, and finds none.
    """

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        environ.pop("HTTP_UPGRADE", None)
        return application(environ, start_response)

    return serve


def _add_errors(app: Flask) -> None:
    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        """Tiny errors: clients decode the bodies of error pages and stumble."""
        response = error.get_response()
        return Response(status=error.code, headers={"Content-Length": "0"} | _allow(response))


def _count_others(app: Flask, requests: Requests) -> None:
    @app.after_request
    def count(response: Response) -> Response:
        """Count what the gateway was not asked for, and so has not counted."""
        if not is_of_gateway():
            route = METRICS if request.blueprint == "metrics" else OTHER
            requests.note(route, response.status_code, None, response.content_length or 0)
        return response


def _allow(response: object) -> dict[str, str]:
    headers = getattr(response, "headers", {})
    return {"Allow": headers["Allow"]} if "Allow" in headers else {}

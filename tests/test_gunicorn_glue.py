"""What is taken from gunicorn, asserted of the gunicorn that is installed.

A release of gunicorn that changes any of it fails here, by name. pyproject.toml bounds gunicorn by
the versions that this module has passed with.
"""

from __future__ import annotations

import inspect
import os
import re
import ssl
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import gunicorn
import gunicorn.sock
import pytest
from gunicorn import config, util
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import wsgi

from eureka_http.gunicorn_glue import Gunicorn, GunicornWorker, WsgiRequest
from eureka_http.reader import Message, RefusedError
from tests.servers import ROOT

PEER = ("10.0.0.7", 1234)
SERVER = ("127.0.0.1", 8761)
SETTINGS = {
    "forwarded_allow_ips": ["127.0.0.1", "::1"],
    "forwarder_headers": ["SCRIPT_NAME", "PATH_INFO"],
    "graceful_timeout": 30,
    "header_map": "drop",
    "keepalive": 2,
    "limit_request_field_size": 8190,
    "limit_request_fields": 100,
    "limit_request_line": 4094,
    "max_requests": 0,
    "threads": 1,
    "timeout": 30,
    "worker_connections": 1000,
}


class Kept:
    """A socket that keeps what is sent; named as the fake that it is."""

    def __init__(self) -> None:
        self.data = b""

    def sendall(self, data: bytes) -> None:
        self.data += data


def a_worker(**settings: Any) -> GunicornWorker:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return GunicornWorker(1, os.getppid(), [], cast(Any, None), 30, cfg, Logger(cfg))


def glue(**settings: Any) -> Gunicorn:
    return Gunicorn(a_worker(**settings))


def message(target: str = "/a%20b?c=d", **headers: str) -> Message:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Message("POST", target, "1.1", {"host": "test", **named}, True, b"body")


def test_the_version_is_one_that_pyproject_allows() -> None:
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bound,) = [each for each in given if each.startswith("gunicorn")]
    found = re.fullmatch(r"gunicorn>=(\d+),<(\d+)", bound)
    assert found is not None, bound
    assert int(found[1]) <= gunicorn.version_info[0] < int(found[2])


def test_no_other_module_of_the_loop_imports_it() -> None:
    imports = re.compile(r"^\s*(?:from|import) gunicorn\b", re.MULTILINE)
    found = {p.name for p in (ROOT / "eureka_http").glob("*.py") if imports.search(p.read_text())}
    assert found == {"gunicorn_glue.py"}


class TestWorker:
    def test_it_is_made_as_the_arbiter_does(self) -> None:
        made = list(inspect.signature(GunicornWorker.__init__).parameters)
        assert made == ["self", "age", "ppid", "sockets", "app", "timeout", "cfg", "log"]

    def test_it_has_what_is_read(self) -> None:
        worker = a_worker(max_requests=7)
        assert (worker.alive, worker.nr, worker.max_requests) == (True, 0, 7)
        assert (worker.ppid, worker.sockets) == (os.getppid(), [])
        assert isinstance(worker.cfg, Config)
        assert isinstance(worker.log, Logger)
        assert a_worker().max_requests > 2**60

    def test_it_has_the_methods_that_are_called_and_overridden(self) -> None:
        assert list(inspect.signature(GunicornWorker.run).parameters) == ["self"]
        assert list(inspect.signature(GunicornWorker.handle_abort).parameters) == [
            *("self", "sig", "frame")
        ]
        worker = a_worker()
        os.utime(worker.tmp.fileno(), (1, 1))
        worker.notify()
        assert worker.tmp.last_update() != 1

    def test_init_process_loads_the_application_and_then_runs(self) -> None:
        source = inspect.getsource(GunicornWorker.init_process)
        assert source.index("os.environ[") < source.index("self.load_wsgi()")
        assert source.index("self.init_signals()") < source.index("self.load_wsgi()")
        assert source.rstrip().endswith("self.run()")
        assert "self.wsgi = self.app.wsgi()" in inspect.getsource(GunicornWorker.load_wsgi)


class TestSettings:
    def test_they_have_their_names_and_defaults(self) -> None:
        cfg = Config()
        found = {name: getattr(cfg, name) for name in SETTINGS}
        assert found == SETTINGS
        assert not cfg.is_ssl
        assert cfg.secure_scheme_headers["X-FORWARDED-PROTO"] == "https"

    @pytest.mark.parametrize("name", ["pre_request", "post_request", "worker_int", "worker_abort"])
    def test_the_hooks_have_their_names(self, name: str) -> None:
        assert callable(getattr(Config(), name))

    def test_a_hook_that_is_not_set_is_known_by_its_default(self) -> None:
        cfg = Config()
        assert cfg.pre_request is config.PreRequest.default
        assert cfg.post_request is config.PostRequest.default

    def test_limits_of_0_are_none(self) -> None:
        limits = glue().limits()
        assert (limits.line, limits.fields, limits.field_size) == (4094, 100, 8190)
        limits = glue(
            limit_request_line=0, limit_request_fields=0, limit_request_field_size=0
        ).limits()
        assert (limits.line, limits.fields, limits.field_size) == (1024 * 1024, 32768, 8190)

    def test_tls_is_made_of_the_settings(self, certificates: Path) -> None:
        assert glue().ssl_context() is None
        files = {
            "certfile": str(certificates / "server.pem"),
            "keyfile": str(certificates / "server.key"),
        }
        asked = {"ca_certs": str(certificates / "ca.pem"), "cert_reqs": int(ssl.CERT_REQUIRED)}
        made = glue(**files, **asked)
        context = made.ssl_context()
        assert context is not None
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert made.scheme == "https"

    def test_who_is_trusted(self) -> None:
        assert not glue().trusts(PEER)
        assert glue().trusts(("127.0.0.1", 1))
        assert glue().trusts("a unix socket")
        assert glue(forwarded_allow_ips="10.0.0.0/24").trusts(PEER)
        assert glue(forwarded_allow_ips="*").trusts(PEER)

    @pytest.mark.parametrize(
        ("header_map", "peer", "name", "is_kept"),
        [
            ("drop", PEER, "x_a", False),
            ("drop", PEER, "script_name", False),
            ("drop", ("127.0.0.1", 1), "script_name", True),
            ("dangerous", PEER, "x_a", True),
            ("refuse", PEER, "x_a", None),
        ],
    )
    def test_fields_with_underscores(
        self, header_map: str, peer: Any, name: str, is_kept: bool | None
    ) -> None:
        made = glue(header_map=header_map)
        if is_kept is None:
            with pytest.raises(RefusedError):
                made.takes_underscore(name, peer)
        else:
            assert made.takes_underscore(name, peer) is is_kept


class TestWsgi:
    def test_create_makes_a_response_and_an_environment(self) -> None:
        made = glue()
        request = made.request(message(x_one="1", content_type="text/x"), PEER)
        client = object()
        _, environ = made.exchange(request, SERVER, client, Kept())
        expected = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/a b",
            "RAW_URI": "/a%20b?c=d",
            "QUERY_STRING": "c=d",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "10.0.0.7",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8761",
            "CONTENT_TYPE": "text/x",
            "HTTP_HOST": "test",
            "HTTP_X_ONE": "1",
            "wsgi.url_scheme": "http",
            "wsgi.multithread": True,
            "gunicorn.socket": client,
        }
        assert {name: environ[name] for name in expected} == expected
        assert environ["wsgi.input"].read() == b"body"

    def test_the_response_writes_by_sendall_and_counts(self) -> None:
        made, sink = glue(), Kept()
        response, _ = made.exchange(made.request(message(), PEER), SERVER, None, sink)
        assert (response.status, response.sent, response.response_length) == (None, 0, None)
        response.start_response("200 OK", [("Content-Length", "4")])
        response.write(b"body")
        response.close()
        assert sink.data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert sink.data.endswith(b"\r\n\r\nbody")
        assert (response.status, response.status_code) == ("200 OK", 200)
        assert (response.sent, response.response_length) == (4, 4)
        assert not response.should_close()
        response.force_close()
        assert response.should_close()

    def test_of_a_request_nothing_else_is_read(self) -> None:
        """Each attribute that gunicorn's WSGI layer asks a request for, ``WsgiRequest`` has."""
        names: set[str] = set()
        for code in (wsgi.create, wsgi.default_environ, wsgi.base_environ, wsgi.proxy_environ):
            names |= set(re.findall(r"\breq\.(\w+)", inspect.getsource(code)))
        names |= set(re.findall(r"\bself\.req\.(\w+)", inspect.getsource(wsgi.Response)))
        names |= set(re.findall(r"\breq\.(\w+)", inspect.getsource(Logger.atoms)))
        # Only asked for where it is there, and part of HTTP/2.
        names -= {"priority_weight", "priority_depends_on"}
        request = WsgiRequest(message(), "http", PEER)
        assert {name for name in names if not hasattr(request, name)} == set()

    def test_targets_are_split(self) -> None:
        for target, path, query in (
            ("/a?b", "/a", "b"),
            ("//a/b?c", "//a/b", "c"),
            ("http://other:80/a?b", "/a", "b"),
            ("*", "*", ""),
        ):
            parts = util.split_request_uri(target)
            assert (parts.path, parts.query or "") == (path, query)

    def test_a_trusted_peer_tells_the_scheme(self) -> None:
        told = message(x_forwarded_proto="https")
        assert glue().request(told, PEER).scheme == "http"
        assert glue().request(told, ("127.0.0.1", 1)).scheme == "https"


class TestLog:
    def test_an_access_line_has_what_its_format_may_ask_for(self, tmp_path: Path) -> None:
        log = tmp_path / "access"
        form = '%(h)s "%(r)s" %(s)s %(b)s "%(a)s" %({x-own}i)s %({x-fast}o)s %(L)s'
        made = glue(accesslog=str(log), access_log_format=form)
        assert made.is_observed()
        asked = made.request(message(user_agent="me", x_own="mine"), PEER)
        response, environ = made.exchange(asked, SERVER, None, None)
        response.status, response.sent, response.headers = "200", 4, [("X-Fast", "yes")]
        made.ended(asked, environ, response, datetime.now() - timedelta(seconds=2))
        line = log.read_text()
        assert line.startswith('10.0.0.7 "POST /a%20b?c=d HTTP/1.1" 200 4 "me" mine yes 2.')

    def test_nobody_is_told_where_nobody_asks(self) -> None:
        assert not glue().is_observed()

    def test_a_hook_and_another_logger_are_told_of_each_request(self) -> None:
        class Own(Logger):
            def access(self, *arguments: Any) -> None:
                """Another than gunicorn's."""

        assert glue(pre_request=lambda worker, req: None).is_observed()
        assert glue(post_request=lambda worker, req, environ, resp: None).is_observed()
        worker = a_worker()
        worker.log = Own(worker.cfg)
        assert Gunicorn(worker).is_observed()

    def test_a_failing_hook_harms_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        def fails(worker: Any, req: Any, environ: Any, resp: Any) -> None:
            raise RuntimeError("on purpose")

        made = glue(post_request=fails)
        made.ended(made.request(message(), PEER), {}, None, datetime.now())
        assert "on purpose" in caplog.text

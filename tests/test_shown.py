"""What may stand in a log or a report: no secret, and no more than one line."""

from __future__ import annotations

import io
import logging
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eureka_http.shown import LineFormatter, caller, escaped, masked, masked_url
from eureka_server.access import Grant
from native_api.sidecar.client import Site
from registry import Namespace


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:8761/eureka/", "http://h:8761/eureka/"),
        ("http://ann:s3cret@h/eureka", "http://h/eureka"),
        ("http://ann:s3%40cret@h/eureka", "http://h/eureka"),
        ("http://ann:s3@cret@h/eureka", "http://h/eureka"),
        ("http://ann:s3/cret@h/eureka", "…"),
        ("http://ann:12/cret@h/eureka", "http://…"),
        ("http://ann:s3#cret@h/eureka", "…"),
        ("http://ann:12#cret@h/eureka", "http://…"),
        ("http://ann:s3?cret@h/eureka", "…"),
        ("http://ann:12?cret@h/eureka", "http://…"),
        ("http://h/eureka/n/svc:s3cret", "http://h/eureka/n/…"),
        ("http://h/eureka/v2/n/s3cret/apps", "http://h/eureka/v2/n/…/apps"),
        ("http://h/v1?token=s3cret", "http://h/v1"),
        ("http://[::1]:8500/x", "http://[::1]:8500/x"),
        ("redis+sentinel://ann:s3,cret@h:1,[::1]:2,i/s/0?x", "redis+sentinel://h:1,[::1]:2,i/s/0"),
        ("redis+sentinel://ann:12,13/cret@h:1,i:2/s", "redis+sentinel://…"),
        ("redis+sentinel://h:1,ann:s3cret/s", "…"),
        ("redis+sentinel://h:1,:2/s", "redis+sentinel://…"),
        ("http://h:s3cret/", "…"),
        ("h:8761/s3cret", "…"),
        ("", "…"),
    ],
)
def test_a_url_is_shown_without_what_could_be_secret(url: str, shown: str) -> None:
    assert masked_url(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /eureka/n/ann:s3cret/apps?x=1 HTTP/1.1", "GET /eureka/n/…/apps?x=1 HTTP/1.1"),
        ("GET /eureka/v2/n/s3cret HTTP/1.1", "GET /eureka/v2/n/… HTTP/1.1"),
        ("GET http://h/eureka/n/s3cret/apps", "GET http://h/eureka/n/…/apps"),
        ("GET /eureka/n;a=b//s3cret/apps", "GET /eureka/n;a=b//…/apps"),
        ("GET /eureka/apps/n/shop:1", "GET /eureka/apps/n/shop:1"),
        ("GET /eureka/n/ann:it's/apps", "GET /eureka/n/…/apps"),
        ('GET /eureka/n/ann:a"s3<c/apps', "GET /eureka/n/…/apps"),
        ("GET /eureka/.;x//n/s3cret/apps", "GET /eureka/.;x//n/…/apps"),
        ("at https://sp:it's@h/eureka", "at https://…@h/eureka"),
        ("GET //sp:s3cret@h/eureka", "GET //…@h/eureka"),
        ("GET /x?token=it's&y=1", "GET /x?token=…&y=1"),
        ("at https://sp:p%40ss@h/eureka and on", "at https://…@h/eureka and on"),
        ("at https://sp:p@ss@h/eureka and on", "at https://…@h/eureka and on"),
        ("GET /x?access_token=s3cret&y=1", "GET /x?access_token=…&y=1"),
        ("GET /x?y=1&X-Amz-Signature=s3cret", "GET /x?y=1&X-Amz-Signature=…"),
        ("GET /x?password=s3cret#z", "GET /x?password=…#z"),
        ("Authorization: Bearer s3cret.s3cret", "Authorization: Bearer …"),
        ("'Basic czNjcmV0'", "'Basic …'"),
        ("registered SHOP/shop:1@host", "registered SHOP/shop:1@host"),
    ],
)
def test_a_line_keeps_everything_but_the_secrets_of_its_urls(text: str, shown: str) -> None:
    assert masked(text) == shown


# What the patterns look for, and what lets them begin anew.
_ATOMS = ("?", ";", "&x;", "token", "?sig", "?key", "=", "//", "@", "/n/", "/n;", "/api/eureka/")
_LONG, _MUCH_SECS = 6_000, 20


@pytest.mark.parametrize("first", _ATOMS)
def test_a_hostile_text_is_masked_at_once(first: str) -> None:
    """Once, a client's ``User-Agent`` kept a worker busy for minutes: its time grew by the cube."""
    began = time.process_time()
    for second in (*_ATOMS, " ", "%2e", "Basic ", "/../", "v2"):
        pair = first + second
        masked("=" + pair * (_LONG // len(pair)))
        masked("=" + first + second * (_LONG // len(second)))
    # It takes some milliseconds; of what is not linear, one text takes several times this.
    assert time.process_time() - began < _MUCH_SECS


@pytest.mark.parametrize("password", ["s3cret", "s3@cret", "s3%40cret", "s3:cret", "s3/cret@x"])
def test_the_sidecar_shows_no_secret_of_its_registries(password: str) -> None:
    for url in (f"https://sp:{password}@h/eureka", f"https://h/n/sp:{password}/eureka"):
        try:
            shown = Site.of(url).shown
        except ValueError as error:
            shown = str(error)
        assert "s3" not in shown


def logged(message: str, *arguments: object, error: Exception | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s%(caller)s %(message)s"))
    record = logging.LogRecord("x", logging.INFO, "x", 1, message, arguments, None)
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    handler.handle(record)
    return stream.getvalue()


def test_what_a_client_sends_neither_ends_a_line_nor_colours_the_terminal() -> None:
    sent = "x\nERROR forged\r\x1b[31m\u2028\u202etxt\x9b\udc80"
    assert logged("registered %s", sent) == (
        "INFO registered x\\nERROR forged\\r\\x1b[31m\\u2028\\u202etxt\\x9b\\udc80\n"
    )


def test_a_traceback_is_set_in_so_that_none_of_its_lines_can_be_taken_for_a_record() -> None:
    try:
        raise ValueError("x\nERROR forged /n/s3cret\x1b[31m")
    except ValueError as error:
        text = logged("failed", error=error)
    lines = text.splitlines()
    assert lines[0] == "INFO failed"
    assert all(line.startswith("    ") for line in lines[1:])
    assert "s3cret" not in text
    assert "\x1b" not in text


@given(st.text())
def test_no_text_is_more_than_one_line(text: str) -> None:
    assert len(escaped(text).splitlines()) <= 1
    assert re.search(r"[\x00-\x1f\x7f-\x9f]", escaped(text)) is None


def test_a_line_says_who_asked() -> None:
    before = caller.set(Grant(Namespace("red"), user="ann\n"))
    try:
        assert logged("registered") == "INFO [ann\\n@red] registered\n"
    finally:
        caller.reset(before)
    assert logged("registered") == "INFO registered\n"

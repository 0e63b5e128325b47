"""The application of this process, from the process's environment: ``gunicorn wsgi:app``."""

from __future__ import annotations

import os

from flask import Flask

from eureka_server.app import create_app
from eureka_server.settings import SettingError, load
from eureka_server.start import give_up
from registry import StoreError


def _start() -> Flask:
    try:
        return create_app(load(os.environ))
    except (SettingError, StoreError, ValueError) as error:
        give_up(error)


app = _start()

"""The application of this process, from the process's environment: ``gunicorn wsgi:app``."""

from __future__ import annotations

import os

from flask import Flask

from application import create_app
from environment import SettingError, load
from registry import StoreError
from start import give_up


def _start() -> Flask:
    try:
        return create_app(load(os.environ))
    except (SettingError, StoreError, ValueError) as error:
        give_up(error)


app = _start()

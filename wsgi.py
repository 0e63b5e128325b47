"""The application of this process, from the process's environment: ``gunicorn wsgi:app``."""

import os

from eureka_server.app import from_environment

app = from_environment(os.environ)

"""How gunicorn serves the application; it reads this file by itself when started beside it."""

from eureka_server.gunicorn_settings import *  # noqa: F403

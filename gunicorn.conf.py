"""How gunicorn serves the application; it reads this file by itself when started beside it."""

import os

from eureka_server.gunicorn_settings import gunicorn_settings

globals().update(gunicorn_settings(os.environ))

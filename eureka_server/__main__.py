"""``python -m eureka_server``: the command ``eureka-registry``."""

import sys

from eureka_server.command import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.programs``: build what tests start and Python does not bring along.

Done beforehand, since it takes many minutes where nothing is built yet, and a test's time is
limited. Tests that are run without it build what they need themselves.
"""

from __future__ import annotations

from conformance.compare import GENERATIONS, HERE
from conformance.programs import KINDS, built_jar
from tests.image import readers
from tests.parcel import wheelhouse
from tests.sources import consul_agent, kubernetes
from tests.test_amalgam8 import go_client


def main() -> None:
    for pom in GENERATIONS.values():
        built_jar(HERE / "oracle", pom)
    for kind in KINDS:
        kind.command()
    for program in (go_client, consul_agent.program, kubernetes.program, readers, wheelhouse):
        program()


if __name__ == "__main__":
    main()

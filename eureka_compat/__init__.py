"""The Eureka v2 protocol over a registry."""

from eureka_compat.endpoints import EurekaApi
from eureka_compat.lanes import EurekaLane
from eureka_compat.settings import EurekaSettings

__all__ = ["EurekaApi", "EurekaLane", "EurekaSettings"]

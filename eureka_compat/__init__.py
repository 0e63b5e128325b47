"""The Eureka v2 protocol over a registry."""

from eureka_compat.protocol import Caller, Protocol
from eureka_compat.settings import EurekaSettings

__all__ = ["Caller", "EurekaSettings", "Protocol"]

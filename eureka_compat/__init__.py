"""The Eureka v2 protocol over a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Blueprint

    from eureka_compat.settings import EurekaSettings
    from registry import Registry


def create_blueprint(registry: Registry, settings: EurekaSettings) -> Blueprint:
    """All endpoints under ``/eureka`` and ``/eureka/v2``."""
    from eureka_compat.routes import blueprint

    return blueprint(registry, settings)


__all__ = ["create_blueprint"]

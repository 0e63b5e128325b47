"""Instances from elsewhere: files, Kubernetes, other Eureka servers, Consul, etcd.

Each catalog follows one source; a reconciler that all share brings the registry in line with it,
in one worker at a time.
"""

from catalogs.catalog import Catalog, Entry, Groups, RelistError, SourceError
from catalogs.runner import Report, Runner, Terms
from catalogs.settings import CatalogSettings, read_catalogs

__all__ = [
    "Catalog",
    "CatalogSettings",
    "Entry",
    "Groups",
    "RelistError",
    "Report",
    "Runner",
    "SourceError",
    "Terms",
    "read_catalogs",
]

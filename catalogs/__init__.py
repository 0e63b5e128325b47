"""Instances from elsewhere: files, Kubernetes, other Eureka servers, Consul, etcd.

Each catalog follows one source, in one worker at a time. The reconciler, which all of them use,
writes the differences between source and registry.
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

"""Instances from elsewhere: files, Kubernetes, other Eureka servers, Consul, etcd.

Each catalog follows one source; a reconciler that all share brings the registry in line with it,
in one worker at a time.
"""

from catalogs.catalog import Catalog, Entry, Groups, RelistError, SourceError
from catalogs.settings import CatalogSettings, read_catalogs
from catalogs.supervisor import Report, Supervisor, Terms

__all__ = [
    "Catalog",
    "CatalogSettings",
    "Entry",
    "Groups",
    "RelistError",
    "Report",
    "SourceError",
    "Supervisor",
    "Terms",
    "read_catalogs",
]

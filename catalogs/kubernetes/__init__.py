"""Services of Kubernetes: their endpoint slices, with details from the Services and Pods.

It needs three lists and three watches of a REST API, for which ``requests`` is enough: importing
the official client takes 1.6 s and 131 MiB, in the process that serves. ``watching`` fetches
objects, ``catalog`` keeps them, ``mapping`` turns them into entries.
"""

from catalogs.kubernetes.catalog import KubernetesCatalog
from catalogs.kubernetes.settings import KubernetesSettings

__all__ = ["KubernetesCatalog", "KubernetesSettings"]

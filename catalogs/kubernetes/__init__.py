"""Services of Kubernetes: endpoint slices, and what their Services and Pods add to them.

Three lists and three watches of one REST API are all that is needed, and ``requests`` is here
anyway: the official client takes 1.6 s and 131 MiB to be imported, in the process that serves.
``watching`` brings objects, ``catalog`` keeps them, ``mapping`` makes entries of them.
"""

from catalogs.kubernetes.catalog import KubernetesCatalog
from catalogs.kubernetes.settings import KubernetesSettings

__all__ = ["KubernetesCatalog", "KubernetesSettings"]

"""The registry of a process: the namespaces of one store, and what concerns all of them.

What is registered, renewed, read in a namespace is said to ``in_namespace(...)``, which binds it
once: no verb has a namespace among its arguments that a caller could leave out or mistake.
"""

from __future__ import annotations

import ctypes
import threading
import time
from weakref import WeakValueDictionary

from registry.lease import Clock
from registry.model import DEFAULT_NAMESPACE, Namespace
from registry.namespace import NamespaceRegistry
from registry.settings import RegistrySettings
from registry.store import Coordination, Store

_FORGOTTEN_AT_ONCE = 1_000
_MANY = 5_000
_AFTER_FALL_MS = 90_000
_PAUSE_SECS = 0.002


class Registry:
    """All namespaces of one store, as this worker process sees and changes them. Thread-safe."""

    def __init__(self, store: Store, clock: Clock, settings: RegistrySettings) -> None:
        """Nothing is read before ``start``."""
        self.clock = clock
        self.settings = settings
        self.coordination: Coordination = store
        """Locks and notes that all workers share."""
        self._store = store
        self._lock = threading.Lock()
        # Whoever asks for a namespace gets the same object as long as anybody has it; those that
        # hold something are had by this registry.
        self._known: WeakValueDictionary[Namespace, NamespaceRegistry] = WeakValueDictionary()
        self._kept: dict[Namespace, NamespaceRegistry] = {}
        self._kept[DEFAULT_NAMESPACE] = self.in_namespace(DEFAULT_NAMESPACE)
        # The most instances that were held at once lately, and when there last were half of them.
        self._most_held = 0
        self._fell_at = 0

    def start(self) -> None:
        """Load what the store holds; ``StoreError`` if it does not answer.

        Nothing else is prepared here: a namespace may come into being at any time, by any worker.
        """
        for namespace in self.namespaces():
            self.in_namespace(namespace).view()

    def namespaces(self) -> list[Namespace]:
        """Every namespace that ever held an instance, and the default one; ``StoreError``."""
        return list({DEFAULT_NAMESPACE: None} | dict.fromkeys(self._store.namespaces()))

    def in_namespace(self, namespace: Namespace) -> NamespaceRegistry:
        """The registry of one namespace; nothing is read or written by asking for it."""
        with self._lock:
            found = self._known.get(namespace)
            if found is None:
                found = NamespaceRegistry(
                    namespace, self._store, self.clock, self.settings, self._keep
                )
                self._known[namespace] = found
            return found

    def keeps(self, namespace: Namespace) -> bool:
        """Whether this worker keeps a view of a namespace, as others may what they make of it.

        It does of the default one, and of those that hold an instance, or held one lately. Anybody
        may ask for any other.
        """
        return namespace in self._kept

    def _keep(self, registry: NamespaceRegistry) -> None:
        if registry.namespace not in self._kept and not registry.is_blank:
            self._kept[registry.namespace] = registry

    def forget_old_changes(self) -> None:
        """Let go of changes that no delta tells of any more, a few at a time."""
        now = self.clock.mono_ms()
        for namespace, registry in list(self._kept.items()):
            while registry.forget_old_changes(now, _FORGOTTEN_AT_ONCE):
                time.sleep(_PAUSE_SECS)
            if namespace != DEFAULT_NAMESPACE and registry.is_blank:
                del self._kept[namespace]
                self._keep(registry)  # where a change came in between
        self._give_memory_back(now)

    def _give_memory_back(self, now_mono_ms: int) -> None:
        """Have the allocator return what a fleet took that is gone; it keeps that by itself.

        A while after most of it went, when answers that were made of it are forgotten as well.
        """
        held = sum([registry.held() for registry in list(self._kept.values())])
        if held >= self._most_held // 2:
            self._most_held = max(self._most_held, held)
            self._fell_at = now_mono_ms
        elif self._most_held > _MANY and now_mono_ms - self._fell_at > _AFTER_FALL_MS:
            self._most_held = held
            _trim_memory()

    def check(self) -> None:
        """Return if the store answers and takes writes; ``StoreError`` with the reason if not."""
        self._store.revision(DEFAULT_NAMESPACE)
        self._store.probe()


def _trim_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)

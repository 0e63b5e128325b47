"""The registry of a process: the namespaces of one store, and what concerns all of them.

``in_namespace`` binds a namespace once and gives the object with the verbs. No verb has a namespace
among its arguments, so none can be left out, and no write can go to another tenant by mistake.
"""

from __future__ import annotations

import ctypes
import threading
import time
from weakref import WeakValueDictionary

from registry.figures import EVENTS, Figures
from registry.lease import Clock
from registry.model import DEFAULT_NAMESPACE, Namespace
from registry.namespace import NamespaceRegistry
from registry.readers import Readers
from registry.recording import Recorder
from registry.settings import RegistrySettings
from registry.store import Coordination, Store, StoreState

_FORGOTTEN_AT_ONCE = 1_000
_PAUSE_SECS = 0.002
# Memory is given back so long after a fleet of so many instances went.
_MANY = 5_000
_AFTER_FALL_MS = 90_000


class Registry:
    """All namespaces of one store, as this worker process sees and changes them. Thread-safe."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: RegistrySettings,
        recorder: Recorder | None = None,
        figures: Figures | None = None,
        readers: Readers | None = None,
    ) -> None:
        """Nothing is read before ``start``.

        The ``recorder`` keeps the history, if anybody does; what happens is counted in ``figures``.
        """
        self.figures = Figures() if figures is None else figures
        self.readers = Readers(self.figures) if readers is None else readers
        """Who fetches what is listed."""
        self.clock = clock
        self.settings = settings
        self.coordination: Coordination = store
        """Locks and notes that all workers share."""
        self.recorder = recorder
        self._store = store
        self._lock = threading.Lock()
        # All that ask for a namespace get the same object, as long as anybody holds it. This
        # registry holds those with something in them (``_kept``).
        self._known: WeakValueDictionary[Namespace, NamespaceRegistry] = WeakValueDictionary()
        self._kept: dict[Namespace, NamespaceRegistry] = {}
        self._kept[DEFAULT_NAMESPACE] = self.in_namespace(DEFAULT_NAMESPACE)
        # The most instances held at once lately, and when at least half of them were last held.
        self._most_held = 0
        self._fell_at = 0

    def start(self) -> None:
        """Load what the store holds; ``StoreError`` if it does not answer.

        Any worker may bring another namespace into being at any time; it is loaded when asked for.
        """
        for namespace in self.namespaces():
            self.in_namespace(namespace).view()

    def namespaces(self) -> list[Namespace]:
        """Every namespace that ever held an instance, and the default one; ``StoreError``."""
        return list({DEFAULT_NAMESPACE: None} | dict.fromkeys(self._store.namespaces()))

    def occupied(self) -> list[Namespace]:
        """The namespaces that hold an instance now, and the default one; ``StoreError``."""
        known = self._store.namespaces()
        held = [namespace for namespace, size in known.items() if size]
        return list({DEFAULT_NAMESPACE: None} | dict.fromkeys(held))

    def in_namespace(self, namespace: Namespace) -> NamespaceRegistry:
        """The registry of one namespace. Asking for it reads nothing and writes nothing."""
        with self._lock:
            found = self._known.get(namespace)
            if found is None:
                found = NamespaceRegistry(
                    namespace,
                    self._store,
                    self.clock,
                    self.settings,
                    self._keep,
                    self.recorder,
                    self.figures.numbers(EVENTS),
                    self.readers,
                )
                self._known[namespace] = found
            return found

    def keeps(self, namespace: Namespace) -> bool:
        """Whether this worker keeps a namespace in memory: others may keep what they make of it.

        It keeps the default one, and those that hold an instance or did lately. Of others nothing
        may be kept: anybody can ask for any name.
        """
        return namespace in self._kept

    def _keep(self, namespace: Namespace) -> None:
        if namespace in self._kept:
            return
        registry = self._known.get(namespace)
        if registry is not None and not registry.is_blank:
            self._kept[namespace] = registry

    def forget_old_changes(self) -> None:
        """Forget changes that are too old for the delta, a few at a time; and empty namespaces."""
        now = self.clock.mono_ms()
        for namespace, registry in list(self._kept.items()):
            while registry.forget_old_changes(now, _FORGOTTEN_AT_ONCE):
                time.sleep(_PAUSE_SECS)
            if namespace != DEFAULT_NAMESPACE and registry.is_blank:
                del self._kept[namespace]
                self._keep(namespace)  # where a change came in between
        self._give_memory_back(now)

    def _give_memory_back(self, now_mono_ms: int) -> None:
        """Have the allocator return the memory of a fleet that went; by itself it would keep it.

        A while after most of it went, when the answers that were made of it are forgotten too.
        """
        held = sum([registry.held() for registry in list(self._kept.values())])
        if held >= self._most_held // 2:
            self._most_held = max(self._most_held, held)
            self._fell_at = now_mono_ms
        elif self._most_held > _MANY and now_mono_ms - self._fell_at > _AFTER_FALL_MS:
            self._most_held = held
            _trim_memory()

    def store_state(self) -> StoreState:
        """The store's life and size, to be shown; ``StoreError``."""
        return self._store.state()

    def check(self) -> str | None:
        """``StoreError`` with the reason where the store does not answer, or takes no writes.

        Else what is to be said of what is written, where there is anything.
        """
        self._store.revision(DEFAULT_NAMESPACE)
        return self._store.probe()


def _trim_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)

"""A delta client as the Java client is: one full fetch, then deltas, checked by hash codes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from conformance.case import FailedError, Session, Target, quoted, unique
from conformance.documents import (
    Form,
    Instance,
    Listing,
    effective_id,
    hash_code,
    listing,
    sample,
)

Key = tuple[str, str]


class Follower:
    """Holds a copy of the registry and keeps it current (DiscoveryClient.getAndUpdateDelta).

    ``full_fetches`` counts how often it had to fetch everything: the first time, and whenever its
    own hash code was not the delta's.
    """

    def __init__(self, session: Session, form: Form) -> None:
        self._session = session
        self._form = form
        self.instances: dict[Key, Instance] = {}
        self.full_fetches = 0
        self.deltas = 0
        self.mismatches: list[str] = []

    def fetch_all(self) -> None:
        self.full_fetches += 1
        found = self._session.listing("/apps", self._form)
        self.instances = {_key(app, i): i for app, all_ in found.applications.items() for i in all_}

    def fetch_delta(self) -> None:
        """Apply one delta; a full fetch follows where the hash codes differ."""
        exchange = self._session.get("/apps/delta", self._form)
        self._session.status(exchange, 200)
        delta = self._session.read(listing, exchange)
        self.deltas += 1
        self._apply(delta)
        own = hash_code([i["status"] for i in self.instances.values()])
        if own != delta.hash_code:
            self.mismatches.append(f"own {own}, told {delta.hash_code}")
            self.fetch_all()

    def _apply(self, delta: Listing) -> None:
        for app, changed in delta.applications.items():
            for instance in changed:
                if instance["actionType"] == "DELETED":
                    self.instances.pop(_key(app, instance), None)
                else:
                    self.instances[_key(app, instance)] = instance

    def states(self) -> dict[Key, tuple[str, str]]:
        """What a client acts on, by instance."""
        return {key: (i["status"], i["ipAddr"]) for key, i in self.instances.items()}


def _key(app: str, instance: Instance) -> Key:
    return app, effective_id(instance)


def follow(session: Session, form: Form, changes: int, writers: int) -> str:
    """Follow the registry while others change it; ``FailedError`` where one full fetch was too few.

    Each writer has a connection of its own, so that a server of several processes answers through
    all of them. Returns what was done, in words.
    """
    apps = [unique("FLW") for _ in range(4)]
    follower = Follower(session, form)
    follower.fetch_all()
    errors: list[str] = []
    threads = [
        threading.Thread(
            target=_guarded,
            args=(errors, lambda seed=seed: _write(session.target, apps, changes // writers, seed)),
        )
        for seed in range(writers)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        follower.fetch_delta()
        time.sleep(0.02)
    try:
        session.require(not errors, f"the writers to be served: {errors}")
        # One change more, alone: a genuine server's cache may keep an answer that was being made
        # while its last change came, until the next one.
        session.register(sample(apps[0], "last"))

        def same() -> None:
            follower.fetch_delta()
            full = session.listing("/apps", form)
            there = {
                _key(app, i): (i["status"], i["ipAddr"])
                for app in apps
                for i in full.application(app)
            }
            copied = {key: value for key, value in follower.states().items() if key[0] in apps}
            session.equal(copied, there, "the copy at the end")

        session.eventually(same)
    finally:
        for app in apps:
            exchange = session.get(f"/apps/{app}")
            if exchange.status == 200:
                for instance in session.listing("/apps").application(app):
                    session.send("DELETE", f"/apps/{app}/{quoted(effective_id(instance))}")
    session.equal(follower.full_fetches, 1, f"full fetches ({follower.mismatches[:3]})")
    return f"{changes} changes by {writers} writers, {follower.deltas} deltas, 1 full fetch"


def _guarded(errors: list[str], work: Callable[[], None]) -> None:
    try:
        work()
    except FailedError as failure:
        errors.append(str(failure))


def _write(target: Target, apps: list[str], changes: int, seed: int) -> None:
    """Make changes of every kind to instances that only this writer has."""
    chance = random.Random(seed)
    session = Session(target)
    present: dict[Key, Instance] = {}
    try:
        for number in range(changes):
            app, name = chance.choice(apps), f"w{seed}:{chance.randrange(10)}"
            sent = sample(
                app,
                name,
                status=chance.choice(("UP", "UP", "DOWN", "STARTING")),
                ipAddr=f"10.{seed}.{number // 250}.{number % 250}",
                lastDirtyTimestamp=str(1700000000000 + number),
            )
            action = chance.random()
            if (app, name) not in present or action < 0.3:
                exchange = session.post(sent)
                session.status(exchange, 204)
                present[app, name] = sent
            elif action < 0.5:
                session.status(session.send("DELETE", session.path(sent)), 200)
                del present[app, name]
            elif action < 0.75:
                value = chance.choice(("OUT_OF_SERVICE", "UP", "DOWN"))
                session.status(
                    session.send("PUT", session.path(sent, f"/status?value={value}")), 200
                )
            elif action < 0.9:
                session.status(session.send("DELETE", session.path(sent, "/status?value=UP")), 200)
            else:
                session.status(
                    session.send("PUT", session.path(sent, f"/metadata?n={number}")), 200
                )
    finally:
        session.close()

"""What an operator does to instances, whichever door they registered at.

An operator's word is that of the registry's own verbs: an override stands above what an instance
says of itself, and what is removed registers again if it still lives. What a catalog lists is left
alone, for its source would bring it back. All of a service is done one instance after the other:
each that is listed at the beginning is done once, and none is held up for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from eureka_http.exchange import Answer, Request
from native_api import form
from native_api.bodies import MAX_BODY_BYTES, json_answer, json_body
from native_api.drain import Drain
from native_api.problems import ProblemError, gone, problem
from native_api.schemas import Schemas
from registry import Instance, InstanceStatus, NamespaceRegistry, SourceConflictError

_Handler = Callable[[Request, str], Answer]
_NOT_REMOVED = "error_instance_deletion_failure"
_NO_SERVICE = "error_service_enumeration"


class Operations:
    """The operations on one namespace. Thread-safe. They raise what the registry's verbs raise."""

    def __init__(self, registry: NamespaceRegistry, schemas: Schemas) -> None:
        """``of_instance`` and ``of_service`` have what is done, by the last word of its path."""
        self._registry = registry
        self._schemas = schemas
        self._draining = Drain(registry)
        self.of_instance: Mapping[str, Mapping[str, _Handler]] = {
            "override": {"PUT": self._set_override, "DELETE": self._remove_override},
            "metadata": {"PATCH": self._patch_metadata},
            "drain": {"POST": self._drain},
        }
        self.of_service: Mapping[str, Mapping[str, _Handler]] = {
            "override": {"PUT": self._set_overrides, "DELETE": self._remove_overrides},
            "drain": {"POST": self._drain_all},
        }

    # One instance

    def _set_override(self, request: Request, name: str) -> Answer:
        status = self._schemas.read_override(json_body(request))
        found = self._found(request, name)
        return _changed(name, self._registry.set_override(found.app, found.id, status))

    def _remove_override(self, request: Request, name: str) -> Answer:
        status = _shown_instead(request)
        found = self._found(request, name)
        return _changed(name, self._registry.remove_override(found.app, found.id, status))

    def _patch_metadata(self, request: Request, name: str) -> Answer:
        patch = self._schemas.read_patch(json_body(request))
        found = self._found(request, name)
        if found.source == form.SOURCE:
            now = self._registry.clock.wall_ms()
            changed = self._registry.amend(
                found.app,
                found.id,
                lambda listed: form.changed(listed, self._patched(listed, patch), now),
                source=form.SOURCE,
                is_replication=True,
            )
        else:
            changed = self._registry.amend(
                found.app,
                found.id,
                lambda listed: listed._replace(metadata=_patched_texts(listed, patch)),
                source=found.source,
            )
        return _changed(name, changed)

    def _patched(self, listed: Instance, patch: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of a native instance, with their types, as the fields that are replaced."""
        metadata = form.shown_metadata(listed)
        if not isinstance(metadata, dict):
            raise ProblemError(problem(409, f"the metadata of {listed.id!r} are no object"))
        return self._schemas.checked_metadata(_merged(metadata, patch))

    def remove(self, request: Request, name: str) -> Answer:
        """Take it out, and the override of its id with it."""
        found = self._found(request, name, _NOT_REMOVED)
        if not self._registry.cancel(found.app, found.id, source=None):
            raise ProblemError(gone(name, _NOT_REMOVED))
        return Answer(200)

    def _drain(self, request: Request, name: str) -> Answer:
        found = self._found(request, name)
        return self._draining.instances(request, form.service_name(found), [found])

    def _found(self, request: Request, instance_id: str, code: str | None = None) -> Instance:
        """The instance that is meant, also where its lease has ended and it is still listed.

        ``ProblemError`` with a 410 where there is none, and with a 409 where there are several, or
        where it is a catalog's.
        """
        service = request.parameters().get("service_name") or None
        if service is None:
            view = self._registry.view()
            with view.lock:
                apps = view.apps_with(instance_id)
            if len(apps) > 1:
                names = ", ".join(repr(app.lower()) for app in sorted(apps))
                text = f"{instance_id!r} is an id in several services: {names}"
                wanted = {"service_name": "the one that is meant"}
                raise ProblemError(problem(409, text, errors=wanted))
        found = self._registry.listed_by_id(instance_id, service)
        if found is None:
            raise ProblemError(gone(instance_id, code))
        if not found.is_leased:
            raise ProblemError(problem(409, _of_a_catalog(found)))
        return found

    # All of a service

    def _set_overrides(self, request: Request, name: str) -> Answer:
        status = self._schemas.read_override(json_body(request))
        return self._each(
            name, lambda i: self._registry.set_override(i.app, i.id, status) is not None
        )

    def _remove_overrides(self, request: Request, name: str) -> Answer:
        status = _shown_instead(request)
        return self._each(
            name, lambda i: self._registry.remove_override(i.app, i.id, status) is not None
        )

    def remove_all(self, request: Request, name: str) -> Answer:
        """Take all instances of a service out, with their overrides."""
        return self._each(name, lambda i: self._registry.cancel(i.app, i.id, source=None))

    def _drain_all(self, request: Request, name: str) -> Answer:
        instances = self._all_of(name)
        leased = [each for each in instances if each.is_leased]
        if not leased:
            raise ProblemError(problem(409, _of_a_catalog(instances[0])))
        return self._draining.instances(request, name, leased)

    def _all_of(self, service: str) -> list[Instance]:
        """The instances of a service; ``ProblemError`` with a 404 where there is none."""
        view = self._registry.view()
        with view.lock:
            listed = list(view.applications.get(service.upper(), {}).values())
        instances = [instance for instance in listed if form.is_of(instance, service)]
        if not instances:
            text = f"no instance of {service!r} is registered"
            raise ProblemError(problem(404, text, code=_NO_SERVICE))
        return instances

    def _each(self, service: str, do: Callable[[Instance], bool]) -> Answer:
        """Do it to each instance; which it was done to, and which were refused.

        One that has gone meanwhile is neither. A 409 where all are a catalog's.
        """
        instances = self._all_of(service)
        done, refused = [], []
        for instance in instances:
            try:
                if do(instance):
                    done.append(instance.id)
            except SourceConflictError:
                refused.append({"id": instance.id, "detail": _of_a_catalog(instance)})
        if len(refused) == len(instances):
            raise ProblemError(problem(409, refused[0]["detail"]))
        return json_answer({"service_name": service, "done": done, "refused": refused})


def _changed(instance_id: str, changed: Instance | None) -> Answer:
    if changed is None:
        raise ProblemError(gone(instance_id))
    return json_answer(form.shown(changed))


def _shown_instead(request: Request) -> InstanceStatus:
    """The status that is shown from now on, until the instance tells its own.

    Unless one is named it is UNKNOWN: then the next heartbeat is answered so that the client
    registers again, with the status that it has.
    """
    told = request.parameters().get("status")
    if told is None:
        return InstanceStatus.UNKNOWN
    try:
        return InstanceStatus(told.upper())
    except ValueError:
        words = ", ".join(InstanceStatus)
        text = f"status: expected one of {words}"
        raise ProblemError(problem(400, text, errors={"status": f"one of {words}"})) from None


def _merged(metadata: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """What is null in a patch is taken away, all else takes the place of what was there."""
    return {name: value for name, value in {**metadata, **patch}.items() if value is not None}


def _patched_texts(listed: Instance, patch: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a Eureka client's instance: texts, and as JSON what is none."""
    texts = {
        name: value if value is None or isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in patch.items()
    }
    metadata = _merged(listed.metadata, texts)
    size = len(orjson.dumps(metadata))
    if size > MAX_BODY_BYTES and size > len(orjson.dumps(listed.metadata)):
        text = f"all metadata together: {MAX_BODY_BYTES} bytes as JSON at most, not the {size}"
        raise ProblemError(problem(400, text, errors={"metadata": text}))
    return metadata


def _of_a_catalog(instance: Instance) -> str:
    return (
        f"{instance.id!r} is listed by the catalog {instance.source!r}, whose source alone can"
        " change it or take it out"
    )

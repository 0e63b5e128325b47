"""``apps``, an application and an instance as they were at an earlier moment: ``?at=``.

The protocol knows no such thing. What is asked for so is made for one caller, in a thread.
"""

from __future__ import annotations

from eureka_compat.encoded import EncodedAnswers, encode_single
from eureka_compat.negotiation import JSON, Form, list_form, negotiated, takes_gzip
from eureka_compat.refusals import NOT_FOUND, plain
from eureka_http.exchange import Answer, Request
from registry import ForgottenError, NamespaceRegistry, NotYetError, NotYetThereError, told_moment


class Past:
    """The lists of one namespace as they were."""

    def __init__(self, registry: NamespaceRegistry) -> None:
        """Nothing is read before it is asked for."""
        self._registry = registry

    def answer(self, request: Request, path: list[str]) -> Answer | None:
        """The answer about all, about an application, or about an instance of it.

        None where the request asks for no moment. ``StoreError``, ``NotYetError``.
        """
        told = request.parameters().get("at")
        if told is None:
            return None
        history, registry = self._registry.history, self._registry
        try:
            moment = told_moment(told, registry.clock.wall_ms(), registry.view().revision)
        except ValueError as error:
            return plain(400, f"at: expected {error}")
        except NotYetThereError as error:
            return plain(404, f"at: {error}")
        if history is None:
            return plain(404, "no history is kept here")
        app = path[0] if path else None
        form, media = Form.JSON, None
        if len(path) > 1:
            media = negotiated(request.headers.get("accept"))
            if media is None:
                return Answer(406)
        else:
            form = list_form(request.headers)
        if request.is_quick:
            raise NotYetError
        try:
            found = [i for i in history.state(moment) if app is None or i.app == app.upper()]
        except ForgottenError as error:
            return plain(410, str(error))
        if media is not None:
            name = "/".join(path[1:])
            one = next((each for each in found if each.id == name), None)
            form = Form.JSON if media == JSON else Form.XML
            return NOT_FOUND if one is None else Answer(200, encode_single(one, form), media)
        # With what it keeps of its own: what is listed now is not to be made again after this.
        encoded = EncodedAnswers(registry).of_past(found, form, app)
        if encoded is None:
            return NOT_FOUND
        return encoded.gzipped() if takes_gzip(request.headers) else encoded.plain()

"""Remote regions, as Spring's and Netflix's servers have them: each is a catalog of its own.

``EUREKA_SERVER_REMOTE_REGION_URLS_WITH_NAME_EU=http://eu:8761/eureka`` names one; Netflix's form
has all in one value, ``eu;http://eu:8761/eureka,us;http://us:8761/eureka``. A whitelist names the
applications that are taken, of one region or (``GLOBAL``) of all that have none of their own.
Source: protocol section 10.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from catalogs import CatalogSettings, read_catalogs
from eureka_compat.peers.membership import read_url

_URLS, _WHITELIST = "remote region urls with name", "remote region app whitelist"
_GLOBAL = "global"


def sources_of(given: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Region → the source of its instances."""
    return {region: f"eureka:{region}" for region in _urls(given)}


def catalogs_of(given: Mapping[str, tuple[str, str]]) -> tuple[CatalogSettings, ...]:
    """A catalog for each region; ``ValueError`` names the setting and what was expected.

    ``given`` has the names of settings, however spelled, and their values.
    """
    listed = dict(_named(given, _WHITELIST))
    found = []
    for region, (name, url) in _urls(given).items():
        try:
            read_url(url)
        except ValueError as error:
            raise ValueError(f"{name}=…: expected the service URL of a region ({error})") from None
        _, applications = listed.get(region) or listed.get(_GLOBAL) or ("", "")
        found.append(
            {
                "kind": "eureka",
                "name": region,
                "urls": [url],
                "local_wins": "instance",
                "applications": [app.strip() for app in applications.split(",") if app.strip()],
            }
        )
    try:
        return read_catalogs(json.dumps(found))
    except ValueError as error:
        raise ValueError(f"remote regions: expected {error}") from None


def _urls(given: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Region → the setting that names it, and its URL."""
    found = {}
    for region, (name, value) in _named(given, _URLS):
        if region:
            found[region] = (name, value.strip())
            continue
        for pair in filter(None, (part.strip() for part in value.split(","))):
            known, _, url = pair.partition(";")
            found[known.strip().lower()] = (name, url.strip())
    return found


def _named(
    given: Mapping[str, tuple[str, str]], words: str
) -> Iterator[tuple[str, tuple[str, str]]]:
    """What a setting's name has behind these words, with the name and the value.

    A variable's name can hold no dash: there, an underscore stands for it.
    """
    beginning = re.compile(rf"eureka.*{words.replace(' ', '[-_]?')}[._]?(.*)", re.IGNORECASE)
    for name, value in given.values():
        found = beginning.search(name)
        if found is not None and value.strip():
            region = found[1].lower()
            yield region.replace("_", "-") if name.isupper() else region, (name, value)

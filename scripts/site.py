"""What the documentation's site has from outside of ``docs/``: a hook of mkdocs.

Some pages lie beside the code that they describe, where a test holds them to it. They are pages of
the site too. Links are written as the repository needs them, relative to the file that they stand
in; here they become the site's. A file of the repository that a page links to (a manifest, say) is
copied into the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# Where a page lies in the repository, and where it is on the site, from docs/.
BESIDE = {
    "eureka_compat/QUIRKS.md": "reference/eureka-quirks.md",
    "native_api/QUIRKS.md": "reference/native-quirks.md",
    "conformance/COVERAGE.md": "reference/coverage.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_SITE_OF = BESIDE | {"README.md": "index.md"}
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages beside the code, and the files that any page links to."""
    for path, place in BESIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    linked = set()
    for path in [*BESIDE, *(f"docs/{page.src_uri}" for page in files.documentation_pages())]:
        if (ROOT / path).is_file():
            linked |= {_target(path, link) for link in _LINK.findall((ROOT / path).read_text())}
    for path in sorted(linked):
        is_elsewhere = path not in _SITE_OF and not path.startswith("docs/")
        if is_elsewhere and (ROOT / path).is_file():
            files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the repository's links into the site's."""
    place = page.file.src_uri
    source = next((path for path, at in BESIDE.items() if at == place), f"docs/{place}")

    def turned(match: re.Match[str]) -> str:
        link = match[1]
        path = _target(source, link)
        if "://" in link or not (ROOT / path).is_file():
            return link  # mkdocs says so, where it is wrong
        return posixpath.relpath(_place(path), posixpath.dirname(place) or ".")

    return _LINK.sub(turned, markdown)


def _target(source: str, link: str) -> str:
    """The file that a link in ``source`` leads to, from the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _place(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path in _SITE_OF:
        return _SITE_OF[path]
    if path.startswith("docs/"):
        return os.path.relpath(path, "docs")
    # Copied as it is: mkdocs would make a page of Markdown.
    return f"files/{path}"

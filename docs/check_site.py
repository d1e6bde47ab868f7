"""Check the links of the built site: `python docs/check_site.py site`.

Pages, images, scripts and anchors must exist, and nothing may be loaded from other sites. For external links only the
form is checked, because a build must not need the network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_OUTWARD = re.compile(r"https?://[\w.-]+\.[a-z]+(:\d+)?(/\S*)?|https?://(localhost|127\.0\.0\.1)(:\d+)?(/\S*)?")
_LOADED = {"img", "script", "link", "iframe", "source"}


class _Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors = {"", "__top"}
        self.links: list[tuple[str, str]] = []
        """Pairs of a tag and an address."""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.anchors.add(value)
            elif name in {"href", "src"} and value is not None:
                self.links.append((tag, value))


@cache
def _page(path: Path) -> _Page:
    return _Page(path)


def faults(site: Path) -> Iterator[str]:
    """Yield each broken link, as `page: address (reason)`."""
    for page in sorted(site.rglob("*.html")):
        for tag, address in _page(page).links:
            reason = _fault(site, page, tag, address)
            if reason:
                yield f"{page.relative_to(site)}: {address} ({reason})"


def _fault(site: Path, page: Path, tag: str, address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme == "data":
        return ""
    if parts.scheme or parts.netloc:
        if tag in _LOADED:
            return "is loaded from another site"
        return "" if _OUTWARD.fullmatch(address) else "is not a valid address"
    if address.startswith("/") and page.name != "404.html":  # a server shows that page for any address
        return "does not work from a folder"
    base = site if address.startswith("/") else page.parent
    target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else page
    if not target.is_relative_to(site.resolve()) or not target.exists():
        return "there is no such file"
    if target.is_dir():
        target /= "index.html"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in _page(target).anchors:
        return "there is no such anchor"
    return ""


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1]).resolve()))
    print("\n".join(found) or "all links work")
    sys.exit(bool(found))

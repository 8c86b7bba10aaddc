"""Who may fetch which file: signed links for a run's pictures.

In: an address. Out: a run's file when its link carries our signature and has not expired.

Gradio's file route knows no owner (anyone with the path gets the photo), so it stays closed: uploads are copied into
the run, their Gradio copies deleted, and pages show pictures through `Media.link` only. The links are signed with a
secret that lives in this process; a page that was reloaded after a restart gets new ones. A link alone is not enough
either: it works in the browser that showed the run's capability, so one that was copied or logged opens nothing.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import threading
import time
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote

PREFIX = "/media/"
LIFETIME_S = 2 * 3600  # a link's expiry is rounded up to this grid, so that polling a page keeps the same address
BROWSERS = 100  # that may see one run: a person who clears their cookies is another each time
SERVED = {".png", ".jpg", ".jpeg", ".webp", ".zip", ".json", ".csv", ".html"}


class Media:
    """Signs links to files below `root` and answers them. `root` is the folder that holds the runs."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        # a run's folder name -> the browsers that may see its files, the last one admitted last
        self._admitted: dict[str, dict[str, None]] = {}

    def admit(self, run: str, browser: str) -> None:
        """From now on `browser` may follow the links to files of `run`: it has shown the run's capability."""
        with self._lock:
            browsers = self._admitted.setdefault(run, {})
            browsers.pop(browser, None)
            browsers[browser] = None
            if len(browsers) > BROWSERS:
                del browsers[next(iter(browsers))]

    def prune(self) -> None:
        """Forget who may see the runs that are gone."""
        with self._lock:
            for run in [run for run in self._admitted if not (self.root / run).exists()]:
                del self._admitted[run]

    def admits(self, path: Path, browser: str) -> bool:
        """Whether `browser` may see this file. The first to follow a link of a new run is its maker: the link was on
        no other page.
        """
        run = path.relative_to(self.root).parts[0]
        with self._lock:
            return browser in self._admitted.setdefault(run, {browser: None})

    def link(self, path: Path, *, name: str | None = None) -> str:
        """A relative address for one file below `root`; `name` makes the browser save it under that name.

        Raises ValueError for a path outside `root`: such a file is never served.
        """
        relative = path.resolve().relative_to(self.root).as_posix()
        expires = int(time.time() // LIFETIME_S + 2) * LIFETIME_S
        # The modification time makes a replaced preview a new address, so the browser shows the new picture.
        try:
            stamp = int(path.stat().st_mtime * 1000)
        except FileNotFoundError:
            stamp = 0
        query = f"?v={stamp}" + (f"&name={quote(name)}" if name else "")
        return f"{PREFIX.lstrip('/')}{expires}/{self._sign(expires, relative)}/{quote(relative)}{query}"

    def path_of(self, link: str) -> Path | None:
        """The file behind a link that `link` made, or None when it has expired."""
        return self.resolve(unquote(link.partition("?")[0]).removeprefix(PREFIX.lstrip("/")))

    def _sign(self, expires: int, relative: str) -> str:
        digest = hmac.new(self._secret, f"{expires}|{relative}".encode(), sha256).digest()
        return base64.urlsafe_b64encode(digest[:24]).decode()

    def resolve(self, address: str) -> Path | None:
        """The file behind the part of an address after `/media/`, or None when it is not ours to give."""
        expires, _, rest = address.partition("/")
        signature, _, relative = rest.partition("/")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16) or int(expires) < time.time():
            return None
        if not hmac.compare_digest(signature.encode(), self._sign(int(expires), relative).encode()):
            return None
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root) or path.suffix.lower() not in SERVED or not path.is_file():
            return None
        return path

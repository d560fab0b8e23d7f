"""Which Python package index this user's pip or uv asks, through which proxy, trusting which certificates.

Read from the same environment variables and files as theirs, because neither tool need be installed: an environment
made by uv has no pip. Mirrors and private indexes so serve the data as they serve the packages.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

SETTINGS = ("index-url", "extra-index-url", "proxy", "cert")


def options() -> dict[str, str]:
    """The settings index-url, extra-index-url, proxy and cert, as far as given: environment, then pip, then uv."""
    found = {**_uv_file(), **_pip_files()}
    uv = {"index-url": ("UV_INDEX_URL", "UV_DEFAULT_INDEX"), "extra-index-url": ("UV_EXTRA_INDEX_URL", "UV_INDEX")}
    for setting in SETTINGS:
        for variable in (*uv.get(setting, ()), f"PIP_{setting.upper().replace('-', '_')}"):
            if os.environ.get(variable):
                found[setting] = os.environ[variable]
    return found


def urls(options: Mapping[str, str]) -> list[str]:
    """The simple indexes to ask, in order; an empty string stands for the client's own default."""
    main = options.get("index-url", "").split()[:1] or [""]
    extra = [url for url in map(_unnamed, options.get("extra-index-url", "").split()) if url.startswith("http")]
    return list(dict.fromkeys([_unnamed(main[0]), *extra]))


def certificates(options: Mapping[str, str]) -> bool | str:
    """The bundle to trust: the variables that requests knows, OpenSSL's, pip's; True for the client's own."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if os.environ.get(name):
            return os.environ[name]
    return options.get("cert") or True


def _unnamed(url: str) -> str:
    """uv writes ``name=url`` where it likes; the name is of no use here."""
    return re.sub(r"^[\w.-]+=(?=\w+://)", "", url)


def _pip_files() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in _pip_places():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip itself will say so; here it only means that this file names no index
        for section in ("global", "download"):
            if parser.has_section(section):
                found.update({key.replace("_", "-"): value.strip() for key, value in parser.items(section)})
    return {key: value for key, value in found.items() if key in SETTINGS}


def _pip_places() -> Iterator[Path]:
    """pip's configuration files, the least preferred first."""
    if os.environ.get("PIP_CONFIG_FILE") == os.devnull:
        return
    home = Path.home()
    yield from (Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"))
    if sys.platform == "darwin":
        yield Path("/Library/Application Support/pip/pip.conf")
        yield home / "Library/Application Support/pip/pip.conf"
    yield home / ".pip/pip.conf"
    yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    yield Path(sysconfig.get_path("data")) / "pip.conf"
    if os.environ.get("PIP_CONFIG_FILE"):
        yield Path(os.environ["PIP_CONFIG_FILE"])


def _uv_file() -> dict[str, str]:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (Path(os.environ.get("UV_CONFIG_FILE") or config / "uv/uv.toml"), Path("/etc/uv/uv.toml")):
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            continue
        defaults = [index["url"] for index in settings.get("index", []) if index.get("default") and "url" in index]
        others = [index["url"] for index in settings.get("index", []) if not index.get("default") and "url" in index]
        main = defaults or [settings[key] for key in ("index-url",) if key in settings]
        found = {"index-url": " ".join(main[:1]), "extra-index-url": " ".join(others)}
        return {key: value for key, value in found.items() if value}
    return {}

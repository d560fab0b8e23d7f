"""Files in memory that the processes of one machine share, and that outlive none of them."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at work torch is imported late: a worker guards the files before it takes seconds for that
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 32 << 20  # bytes: the most that glibc takes for the second; by its own rule the first is twice as much


class Shelf:
    """Files that processes of one machine share: in memory where the system has room there, else among temporary files.

    A private folder in each place, made when it is needed. Both vanish with :meth:`close`, at exit, and by
    :func:`begin_worker` where the owner was killed. folders: another shelf's, where a worker puts its own files.
    """

    def __init__(self, folders: list[Path] | None = None) -> None:
        name = f"fl-utils-{uuid.uuid4().hex}"
        places = [Path(place) for place in ("/dev/shm", tempfile.gettempdir()) if os.access(place, os.W_OK)]
        self.folders = [place / name for place in places] if folders is None else folders
        self._made = 0
        self.close = weakref.finalize(self, _remove, self.folders if folders is None else [], os.getpid())

    def put(self, parts: list[bytes | memoryview]) -> Path:
        """A new file with ``parts`` in it; its path. Raises OSError where no place has room."""

        def fill(path: Path) -> None:
            with path.open("xb") as file:
                file.writelines(parts)

        return self._place(fill)

    def vector(self, length: int) -> tuple[Path, torch.Tensor]:
        """A new file, and the tensor (float32 [length]) that is that file. Raises OSError where no place has room."""

        def fill(path: Path) -> None:
            with path.open("xb") as file:
                if hasattr(os, "posix_fallocate"):  # a file with holes would kill who writes to it, once memory is full
                    os.posix_fallocate(file.fileno(), 0, 4 * length)
                else:
                    file.truncate(4 * length)

        path = self._place(fill)
        return path, floats(path, length)

    def _place(self, fill: Callable[[Path], None]) -> Path:
        self._made += 1
        for folder in self.folders:
            path = folder / f"{os.getpid()}-{self._made}"
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                fill(path)
                return path
            except OSError as error:
                with contextlib.suppress(OSError):
                    path.unlink()
                failed = error
        raise failed


def _remove(folders: list[Path], owner: int) -> None:
    if os.getpid() == owner:  # not in a child that was forked off
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def floats(path: Path | str, length: int) -> torch.Tensor:
    """The tensor (float32 [length]) that is the file at ``path``."""
    import torch

    return torch.from_file(str(path), shared=True, size=length, dtype=torch.float32)


def contents(path: Path | str) -> memoryview:
    """The bytes of the file at ``path``, where they lie."""
    import torch

    size = Path(path).stat().st_size
    return memoryview(torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8).numpy())


def begin_worker(folders: list[Path]) -> None:
    """How a worker process begins: one torch thread, and Ctrl-C is the owner's business.

    Where the owner is killed the worker ends, and leaves nothing in ``folders``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = multiprocessing.parent_process()

    def tidy(patience: float | None) -> None:
        owner.join(patience)
        if not owner.is_alive():
            _remove(folders, os.getpid())

    def guard() -> None:
        tidy(None)
        os._exit(1)

    # Idle, a worker ends by itself where its owner is gone, and may do so before the guard has come to the end.
    Finalize(None, tidy, args=(0.1,), exitpriority=0)
    # A signal to the whole group ends the owner too: wait for it a moment, to see.
    signal.signal(signal.SIGTERM, lambda *_: (tidy(1.0), os._exit(143)))
    threading.Thread(target=guard, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    # glibc gives back what a step of training frees and fetches it again, hundreds of pages a client. Its environment
    # variable would say how much to keep, but may be here for others: a Dask cluster sets one for its workers.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, 2 * KEPT)

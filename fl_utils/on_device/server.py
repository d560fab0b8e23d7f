"""A federation whose clients are programs of their own, over loopback HTTP: an executor of :func:`federation.run`.

    server = Server(contract.path, {0: token, 1: other})        # starts listening; server.address
    with server:
        clients = server.clients(timeout=60)                    # waits until each has joined
        result = federation.run(build, clients, rounds=2, local=local, executor=server, client_timeout=120)

A round with such clients is an ordinary one: the executor hands the state to the client that asks for its work, and the
update that comes back is the result. Clients call, the server never does; ``mobile/standin/client.py`` is one.

    POST /join/<client>      {"examples", "model_sha256"}
    GET  /work/<client>      a frame of fl_utils.wire: the state and what to do; 204: nothing yet; 410: it is over
    POST /update/<client>    a frame: the new state, ``round``, ``state_sha256`` (of the state it began from), ``loss``
    POST /failed/<client>    {"round", "reason"}

Each client has a token of its own (``Authorization: Bearer ...``). An answer other than 2xx is {"error": one sentence}.
Nothing is encrypted, so only loopback addresses are taken.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import ipaddress
import json
import math
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_utils import wire
from fl_utils.cohorts import Client, ClientDropped
from fl_utils.export.contract import load_contract
from fl_utils.federation import train_locally
from fl_utils.on_device.listener import Listener, Refused
from fl_utils.on_device.order import check_plain
from fl_utils.training import client_seed

HEADER = 64 * 1024  # bytes that a frame may have beside its state


def new_tokens(ids: Iterable[int]) -> dict[int, str]:
    """A fresh token of 256 random bits for each client."""
    return {id: secrets.token_urlsafe(32) for id in ids}


def sha256(vector: torch.Tensor | np.ndarray) -> str:
    """The sha256 of a state's little-endian float32 bytes."""
    array = vector.detach().cpu().numpy() if isinstance(vector, torch.Tensor) else vector
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


class Reply(Future):
    """The update to come from one client in one round; its work is withdrawn where nobody waits any longer."""

    withdraw: Callable[[], None] = staticmethod(lambda: None)
    most = math.inf

    def result(self, timeout: float | None = None) -> tuple[torch.Tensor, float]:
        limit = self.most if timeout is None else timeout
        try:
            return super().result(None if math.isinf(limit) else limit)
        except TimeoutError:
            self.withdraw()
            if timeout is None:
                raise ClientDropped(f"silent for {limit:g} s") from None
            raise


@dataclass
class _Place:
    """What the server knows of one client: its examples once it joined, and its work of the running round."""

    token: str
    examples: int = 0
    round: int | None = None
    frame: list = field(default_factory=list)
    state: str = ""
    reply: Reply | None = None

    def end(self) -> Reply | None:
        """Take the work back; nothing is open afterwards."""
        reply, self.reply, self.round, self.frame = self.reply, None, None, []
        return reply


class Server(Executor):
    """Listens from its making until :meth:`shutdown`; closes by ``with``.

    contract: of the file that every client trains (:func:`fl_utils.on_device.litert.export_training`). tokens: each
    client's own. host: a loopback address; port 0 takes a free one. patience: seconds until a request must be whole.
    Where ``federation.run`` sets no ``client_timeout``, a client that is silent for ten times as long has dropped out.
    Raises ValueError on a contract without a training step, tokens that are short or equal, another address.
    """

    def __init__(
        self,
        contract: Path | str,
        tokens: Mapping[int, str],
        host: str = "127.0.0.1",
        port: int = 0,
        patience: float = 60.0,
    ):
        self.contract = load_contract(contract)
        step = self.contract.training.get("train")
        if step is None:
            raise ValueError(
                f"contract {contract} has no training step: clients could not train; want export_training's"
            )
        shapes = {name: each["shape"] for name, each in step["inputs"].items()}
        self.batch = shapes["labels"][0]
        self.length = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("parameter_"))
        if not tokens or len(set(tokens.values())) < len(tokens) or min(map(len, tokens.values())) < 16:
            raise ValueError("tokens: want at least one client, and for each its own of at least 16 characters")
        if not (host == "localhost" or _loopback(host)):
            raise ValueError(f"host is {host!r}: want a loopback address, tokens and updates travel unencrypted")
        self._max_workers = len(tokens)
        self._places = {id: _Place(token) for id, token in tokens.items()}
        self._changed, self._over, self._patience = threading.Condition(), False, patience
        self.bytes_up = self.bytes_down = 0
        self._listener = Listener(host, port, patience, 4 * self.length + HEADER, self._answer)
        self.address = self._listener.address

    def clients(self, timeout: float) -> list[Client]:
        """Wait until every client has joined; each as :class:`fl_utils.federation.Client` without its data.

        A client's examples stay with it: here is only their number, which weighs its update. Raises TimeoutError,
        naming those who are missing, after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: all(p.examples for p in self._places.values()), timeout):
                missing = [id for id, place in self._places.items() if not place.examples]
                raise TimeoutError(f"clients {missing} did not join within {timeout:g} s")
            counts = {id: place.examples for id, place in self._places.items()}
        return [
            Client(id, torch.empty(count, 0), torch.zeros(1, dtype=torch.int64).expand(count))
            for id, count in counts.items()
        ]

    def submit(self, task: Callable, vector: torch.Tensor, client: Client) -> Reply:
        """Put one client's part of a round out for it; called by :func:`federation.run`.

        Raises ValueError where the local training is not what a device's file does.
        """
        asked = inspect.signature(task.func).bind(*task.args, vector, client).arguments
        local, number = asked["local"], asked["number"]
        if asked["train"] is not train_locally:
            raise ValueError("train is given: a client over HTTP trains by its own program, leave it out")
        check_plain(local)
        if not 1 <= (local.batch_size or client.y.numel()) <= self.batch:
            raise ValueError(f"batch_size is {local.batch_size}: the clients' file takes 1 to {self.batch}")
        state = sha256(vector)
        work = {"kind": "state", "round": number, "client": client.id, "state_sha256": state}
        work |= {"epochs": local.local_epochs, "batch_size": local.batch_size, "learning_rate": local.learning_rate}
        reply = Reply()
        reply.most = 10 * self._patience
        reply.withdraw = lambda: self._withdraw(client.id, reply)
        with self._changed:
            if self._over:
                raise RuntimeError("the server was shut down: open another one")
            place = self._places[client.id]
            place.round, place.state, place.reply = number, state, reply
            place.frame = wire.frame(vector, **work, seed=client_seed(asked["seed"], number, client.id))
            self._changed.notify_all()
        return reply

    def _withdraw(self, id: int, reply: Reply) -> None:
        with self._changed:
            if self._places[id].reply is reply:
                self._places[id].end()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Tell every client that asks that it is over (for a moment), then stop listening."""
        with self._changed:
            already, self._over = self._over, True
            for place in self._places.values():
                if (reply := place.end()) is not None:
                    reply.cancel()
            self._changed.notify_all()
        if not already:
            self._listener.stop(wait)

    def _answer(self, action: str, id: int, token: str, body: Callable[[], bytes]) -> tuple[int, list]:
        """Answer one request: status and the buffers of its body. Raises :class:`Refused`."""
        place = self._places.get(id)
        if place is None:
            raise Refused(403, f"client {id} is not of this federation: it has {', '.join(map(str, self._places))}")
        if not hmac.compare_digest(token.encode(), place.token.encode()):
            raise Refused(401, f"the token is not that of client {id}")
        if action == "work":
            return self._work(place)
        data = body()
        if action == "update":
            self._update(id, place, data)
        elif action == "join":
            self._join(id, place, _json(data))
        else:
            said = _json(data)
            with self._changed:
                self._open(id, place, said.get("round"))
                self._settle(place, error=ClientDropped(str(said.get("reason", ""))[:300]))
        return 200, [b"{}"]

    def _join(self, id: int, place: _Place, said: dict) -> None:
        examples = said.get("examples")
        if type(examples) is not int or examples < 1:
            raise Refused(400, f"examples is {examples!r}: want a whole number from 1 up")
        if said.get("model_sha256") != self.contract.sha256:
            raise Refused(409, f"client {id} has another model file than this federation: want {self.contract.sha256}")
        with self._changed:
            if place.examples not in (0, examples):
                raise Refused(409, f"client {id} joined with {place.examples} examples before, not {examples}")
            place.examples = examples
            self._changed.notify_all()

    def _work(self, place: _Place) -> tuple[int, list]:
        with self._changed:
            self._changed.wait_for(lambda: place.reply or self._over, min(5.0, self._patience / 2))
            if self._over:
                raise Refused(410, "the federation is over")
            self.bytes_down += wire.size(place.frame)
            return (200, place.frame) if place.reply else (204, [])

    def _update(self, id: int, place: _Place, data: bytes) -> None:
        try:
            header, vector = wire.parse(data)
        except wire.WireError as error:
            raise Refused(400, f"update of client {id}: {error}") from None
        with self._changed:
            self._open(id, place, header.get("round"))
            wrong, loss = "", header.get("loss")
            if header.get("kind") != "update" or header.get("client") != id:
                wrong = f"it is a {header.get('kind')!r} of client {header.get('client')!r}"
            elif vector.numel() != self.length:
                wrong = f"it has {vector.numel()} values, want {self.length}"
            elif header.get("state_sha256") != place.state:
                wrong = f"it began from another state than round {place.round} did, by its sha256"
            elif not torch.isfinite(vector).all():
                wrong = f"{int((~torch.isfinite(vector)).sum())} of its values are not finite"
            elif type(loss) not in (int, float) or not math.isfinite(loss):
                wrong = f"its loss is {loss!r}, want a finite number"
            if wrong:
                self._settle(place, error=ValueError(f"wrong update: {wrong}"))
                raise Refused(422, f"update of client {id} in round {header['round']} does not count: {wrong}")
            self.bytes_up += len(data)
            self._settle(place, (vector, float(loss)))

    def _open(self, id: int, place: _Place, number: Any) -> None:
        """Raise :class:`Refused` unless this client's part of round ``number`` is waited for."""
        if place.reply is None or number != place.round:
            now = f"round {place.round} is running" if place.reply else "nothing is waited for"
            raise Refused(409, f"client {id} is late with round {number!r}: {now}")

    def _settle(self, place: _Place, result: Any = None, error: Exception | None = None) -> None:
        reply = place.end()
        try:
            reply.set_exception(error) if error else reply.set_result(result)
        except InvalidStateError:
            raise Refused(409, "late: the run was stopped") from None


def _json(data: bytes) -> dict:
    try:
        said = json.loads(data)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise Refused(400, f"the body is a {type(said).__name__}: want a JSON object")
    return said


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

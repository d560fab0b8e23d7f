"""A desktop stand-in for a phone: reads an export contract, runs the model, trains it, joins a federation.

    python client.py classify CONTRACT DATA
    python client.py personalise CONTRACT DATA --epochs 2 --out state.bin
    FL_TOKEN=... python client.py join CONTRACT DATA --server http://127.0.0.1:8000 --client 0

It needs NumPy and the runtime (ai-edge-litert, or onnxruntime for classify), and nothing else of this repository: what
it knows of the model is in the contract. DATA is an .npz file, or a folder of them: ``x`` uint8 [N, H, W, C], ``y`` int
[N]. Its examples never leave it: the server receives their number, the new state and the loss.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

PREFIX = struct.Struct(">4sIQ")  # magic, length of the JSON header, length of the payload
MAGIC = b"FLN1"


class ClientError(Exception):
    """What ends this client, in one sentence."""


def read_contract(path: Path) -> dict:
    """The contract, once the model beside it has been found whole by its sha256."""
    try:
        contract = json.loads(path.read_text(encoding="utf-8"))
        about = contract["model"]
        checked(path.parent / about["file"], about["sha256"])
        if contract["contract"] != 1:
            raise ClientError(f"contract {path} is of version {contract['contract']}: this client reads 1")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClientError(f"contract {path} cannot be read ({error!r})") from None
    return contract


def checked(path: Path, sha256: str) -> bytes:
    """The bytes of ``path``, if they have that sha256."""
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ClientError(f"{path} is missing, truncated or altered: its sha256 is not the contract's")
    return data


def read_data(path: Path, contract: dict) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and labels int64 [N] of an .npz file or a folder of them, in the order of names."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    images, labels = [], []
    _, channels, height, width = contract["input"]["shape"]
    classes = len(contract["labels"])
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as found:
                x, y = found["x"], found["y"]
        except (OSError, ValueError, KeyError) as error:
            raise ClientError(f"data {file} cannot be read as .npz with x and y ({error})") from None
        if x.dtype != np.uint8 or x.shape[1:] != (height, width, channels) or y.shape != x.shape[:1] or not len(x):
            wanted = f"want uint8 [N, {height}, {width}, {channels}] and N labels"
            raise ClientError(f"data {file}: x is {x.dtype} {list(x.shape)}, y {list(y.shape)}; {wanted}")
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= classes:
            raise ClientError(f"data {file}: y wants whole numbers from 0 to {classes - 1}")
        images.append(x)
        labels.append(y.astype(np.int64))
    if not images:
        raise ClientError(f"data {path} holds no .npz file")
    return np.concatenate(images), np.concatenate(labels)


class Model:
    """The contract's model in its runtime; ``state`` (float32 [d]) is None where the file holds fixed weights."""

    def __init__(self, path: Path, threads: int = 1):
        self.contract = contract = read_contract(path)
        self.shape = contract["input"]["shape"]
        self.batch = self.shape[0]
        file = str(path.parent / contract["model"]["file"])
        self.trains = {"train", "infer", "state"} <= contract["training"].keys()
        self.state = None
        if contract["runtime"] == "litert":
            from ai_edge_litert.interpreter import Interpreter

            self._interpreter = Interpreter(file, num_threads=threads)
            if self.trains:
                self._step, self._infer = map(self._interpreter.get_signature_runner, ("train", "infer"))
                inputs = contract["training"]["train"]["inputs"]
                self._parameters = {n: each["shape"] for n, each in inputs.items() if n.startswith("parameter_")}
                about = contract["training"]["state"]
                self.state = np.frombuffer(checked(path.parent / about["file"], about["sha256"]), "<f4")
            else:
                self._infer = self._interpreter.get_signature_runner("serving_default")
        elif contract["runtime"] == "onnx":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            self._infer = lambda **given: dict(zip([contract["output"]["name"]], session.run(None, given), strict=True))
        else:
            raise ClientError(f"the contract's runtime is {contract['runtime']}: this client runs litert and onnx")

    def named(self) -> dict[str, np.ndarray]:
        """The state by parameter, as the file's signatures take it."""
        if self.state is None:
            return {}
        sizes = [int(np.prod(shape)) for shape in self._parameters.values()]
        parts = np.split(self.state, np.cumsum(sizes)[:-1])
        return {n: part.reshape(shape) for (n, shape), part in zip(self._parameters.items(), parts, strict=True)}

    def images(self, x: np.ndarray) -> np.ndarray:
        """Images uint8 [N, H, W, C], N at most the file's, as its input; missing ones are zero."""
        about, filled = self.contract["input"], np.zeros(self.shape, np.float32)
        pixels = x.transpose(0, 3, 1, 2).astype(np.float32)
        if about["applied_by"] == "caller":
            scale, bias = (np.float32(about[key]).reshape(-1, 1, 1) for key in ("scale", "bias"))
            pixels = pixels * scale + bias
        filled[: len(x)] = pixels
        return filled

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Logits float32 [N, classes] of images uint8 [N, H, W, C]."""
        name, output, results = self.contract["input"]["name"], self.contract["output"]["name"], []
        parameters = self.named()
        for start in range(0, len(x), self.batch):
            part = x[start : start + self.batch]
            results.append(self._infer(**{name: self.images(part)}, **parameters)[output][: len(part)])
        return np.concatenate(results)

    def train(self, x, y, epochs: int, batch_size: int, learning_rate: float, seed: int) -> float:
        """Plain SGD on images uint8 [N, H, W, C] and labels [N]; the mean loss of the last epoch.

        Epoch e takes the examples in the order ``default_rng([seed, e]).permutation(N)``.
        """
        if not self.trains:
            raise ClientError(f"{self.contract['name']} has no training step: want a contract with one")
        size = batch_size or len(x)
        if not 1 <= size <= self.batch:
            raise ClientError(f"batches of {size} images were asked for: this model takes 1 to {self.batch}")
        gives = {value["gives"]: name for name, value in self.contract["training"]["train"]["outputs"].items()}
        parameters, classes, total = self.named(), len(self.contract["labels"]), 0.0
        for epoch in range(epochs):
            order, total = np.random.default_rng([seed, epoch]).permutation(len(x)), 0.0
            for start in range(0, len(x), size):
                chosen = order[start : start + size]
                labels = np.zeros((self.batch, classes), np.float32)  # a row of zeros does not count
                labels[np.arange(len(chosen)), y[chosen]] = 1
                given = {"image": self.images(x[chosen]), "labels": labels, "learning_rate": np.float32(learning_rate)}
                made = self._step(**given, **parameters)
                parameters = {name: made[gives[name]] for name in parameters}
                total += float(made[gives["loss"]]) * len(chosen)
        self.state = np.concatenate([value.reshape(-1) for value in parameters.values()])
        return total / len(x)


class Server:
    """The federation's server as this client sees it."""

    def __init__(self, address: str, client: int, token: str, timeout: float):
        self.address, self.client, self.token, self.timeout = address.rstrip("/"), client, token, timeout

    def call(self, action: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one request. Raises ClientError with the server's own words where it refuses."""
        request = urllib.request.Request(
            f"{self.address}/{action}/{self.client}", body, {"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            said = error.read()
            if error.code == 410:
                return 410, b""
            try:
                reason = json.loads(said)["error"]
            except (ValueError, KeyError, TypeError):
                reason = error.reason
            raise ClientError(f"the server refuses to {action}: {reason} (HTTP {error.code})") from None
        except (OSError, urllib.error.URLError) as error:
            raise ClientError(f"the server at {self.address} cannot be reached to {action}: {error}") from None


def frame(vector: np.ndarray, **header) -> bytes:
    """A state and a JSON header as one message."""
    text, payload = json.dumps(header).encode(), np.ascontiguousarray(vector, "<f4").tobytes()
    return PREFIX.pack(MAGIC, len(text), len(payload)) + text + payload


def parse(message: bytes) -> tuple[dict, np.ndarray]:
    """Header and state (float32 [d]) of a message, checked by the sha256 in the header."""
    if len(message) < PREFIX.size:
        raise ClientError(f"the server's message has {len(message)} bytes: it was truncated")
    magic, header, payload = PREFIX.unpack_from(message)
    if magic != MAGIC or len(message) != PREFIX.size + header + payload:
        raise ClientError("the server's message is not whole or not one of a federation")
    about = json.loads(message[PREFIX.size : PREFIX.size + header])
    state = message[PREFIX.size + header :]
    if hashlib.sha256(state).hexdigest() != about["state_sha256"]:
        raise ClientError(f"the state of round {about['round']} was altered on its way: its sha256 differs")
    return about, np.frombuffer(state, "<f4")


def join(model: Model, x: np.ndarray, y: np.ndarray, server: Server) -> int:
    """Take part in every round until the federation is over; how many there were."""
    about = {"examples": len(x), "model_sha256": model.contract["model"]["sha256"]}
    server.call("join", json.dumps(about).encode())
    rounds = 0
    while True:
        status, message = server.call("work")
        if status == 410:
            return rounds
        if status == 204:
            time.sleep(0.02)
            continue
        work, state = parse(message)
        try:
            if state.shape != model.state.shape:
                raise ClientError(f"the server's state has {state.size} values, this model's {model.state.size}")
            model.state = state
            loss = model.train(x, y, work["epochs"], work["batch_size"], work["learning_rate"], work["seed"])
        except Exception as error:
            server.call("failed", json.dumps({"round": work["round"], "reason": str(error)}).encode())
            raise
        header = {"kind": "update", "round": work["round"], "client": server.client, "num_examples": len(x)}
        server.call("update", frame(model.state, **header, state_sha256=work["state_sha256"], loss=loss))
        rounds += 1
        print(f"round {work['round']}: {len(x)} examples, loss {loss:.4f}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run, train or federate an exported model on this machine.")
    parser.add_argument("command", choices=("classify", "personalise", "join"))
    parser.add_argument("contract", type=Path, help="the .contract.json beside the model")
    parser.add_argument("data", type=Path, help="an .npz file, or a folder of them: x uint8 [N, H, W, C], y [N]")
    parser.add_argument("--epochs", type=int, default=1, help="personalise: passes over the data")
    parser.add_argument("--learning-rate", type=float, help="personalise: the contract's by default")
    parser.add_argument("--seed", type=int, default=0, help="personalise: of the order of examples")
    parser.add_argument("--out", type=Path, help="personalise: where the new state goes, float32")
    parser.add_argument("--server", help="join: the federation's address, http://127.0.0.1:PORT")
    parser.add_argument("--client", type=int, help="join: this client's number; its token is in FL_TOKEN")
    parser.add_argument("--timeout", type=float, default=60.0, help="join: seconds to wait for an answer")
    options = parser.parse_args(arguments)
    try:
        model = Model(options.contract)
        x, y = read_data(options.data, model.contract)
        if options.command == "join":
            token = os.environ.get("FL_TOKEN", "")
            if options.server is None or options.client is None or not token:
                raise ClientError("join wants --server, --client, and this client's token in FL_TOKEN")
            if model.state is None:
                raise ClientError(f"{model.contract['name']} has no training step: it cannot join a federation")
            rounds = join(model, x, y, Server(options.server, options.client, token, options.timeout))
            print(f"the federation is over after {rounds} rounds of this client")
            return 0
        before = (model.outputs(x).argmax(1) == y).mean()
        print(f"{len(x)} images, {100 * before:.2f} % right")
        if options.command == "personalise":
            default = model.contract["training"].get("train", {"inputs": {"learning_rate": {"default": 0.0}}})
            rate = options.learning_rate or default["inputs"]["learning_rate"]["default"]
            loss = model.train(x, y, options.epochs, model.batch, rate, options.seed)
            after = (model.outputs(x).argmax(1) == y).mean()
            print(f"trained for {options.epochs} epochs, loss {loss:.4f}: {100 * after:.2f} % right")
            if options.out:
                temporary = options.out.with_name(f".{options.out.name}")
                temporary.write_bytes(np.ascontiguousarray(model.state, "<f4").tobytes())
                temporary.replace(options.out)
    except (ClientError, ImportError) as error:
        print(f"client: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

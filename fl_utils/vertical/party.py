"""One vertical party as a process: ``python -m fl_utils.vertical.party``, told what to do in JSON on its input.

    {"do": "listen"}                                   -> {"address": [host, port]}, for party 0, whom party 1 calls
    {"do": "train", "role": "features" | "ratings", ...} -> {"ok": true, "cpu_seconds": ..., ...} or {"ok": false, ...}

An order names the party's own file of data and its file of results (.npz, no pickles), the terms, the party's own seed,
the session's secret (hex), the address to call and the time-out. What is in a party's file is all that it has; its key
is made in its process and stays there.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from fl_utils import links, orders
from fl_utils.experiment import peak_mb
from fl_utils.vertical import encryption
from fl_utils.vertical.channel import Channel
from fl_utils.vertical.hetero_nn import FeatureParty, RatingParty, agree
from fl_utils.vertical.joint import FeatureSide, RatingSide, Terms, state_of

NAMES = ("feature party", "rating party")


def take_part(job: dict, listener) -> dict:
    """One training and one prediction, as ``job`` says; what to answer."""
    torch.set_num_threads(1)
    terms, role = Terms(**job["terms"]), job["role"]
    with np.load(job["data"], allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    id = ("features", "ratings").index(role)
    mesh = links.connect(id, NAMES, {0: tuple(job["address"])}, listener, bytes.fromhex(job["secret"]), job["timeout"])
    channel, started, used = Channel(mesh, 1 - id), time.perf_counter(), time.process_time()
    phase_ends: dict[str, float] = {}
    trace: list[dict[str, np.ndarray]] = []
    try:
        counts = {"training": len(data["train"]), "test": len(data["test"])}
        agree(channel, NAMES[id], terms, counts, data["ids"])
        play = _features if role == "features" else _ratings
        side, found, sealing = play(channel, terms, job, data, trace, phase_ends)
    except links.LinkError as error:
        mesh.abort(error)
        raise
    except BaseException as error:
        mesh.abort(links.LinkError(NAMES[id], channel.phase, f"{type(error).__name__}: {error}"))
        raise
    mesh.close()
    arrays = {**found, **_arrays(side)}
    for step, state in enumerate(trace):
        arrays |= {f"step {step}/{name}": value for name, value in state.items()}
    with Path(job["out"]).open("wb") as handle:
        np.savez(handle, **arrays)
    return {
        "ok": True,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "training_cpu_seconds": phase_ends["trained"] - phase_ends["began"],
        "training_seconds": phase_ends["trained at"] - phase_ends["began at"],
        "messages": channel.sent,
        "counts": asdict(sealing.counts),
        "training_counts": phase_ends["counts"],
        "peak_mb": peak_mb(),
    }


def _arrays(side) -> dict[str, np.ndarray]:
    """A party's weights, by name."""
    modules = {name: part for name, part in vars(side).items() if isinstance(part, torch.nn.Module)}
    found = {f"{name}.{key}": value.numpy() for name, part in modules.items() for key, value in state_of(part).items()}
    return {**found, "share": side.share.numpy().copy()}


def _on_step(job: dict, side, trace: list, channel: Channel):
    def on_step(step: int) -> None:
        if job.get("trace"):
            trace.append(_arrays(side))
        if job.get("die_at") == step:  # for the tests: a party killed in the middle
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def _timed(ends: dict, sealing, train):
    ends["began"], ends["began at"] = time.process_time(), time.perf_counter()
    result = train()
    ends["trained"], ends["trained at"] = time.process_time(), time.perf_counter()
    ends["counts"] = asdict(sealing.counts)
    return result


def _features(channel: Channel, terms: Terms, job: dict, data: dict, trace: list, ends: dict):
    train, test = (torch.from_numpy(data[part]).float() for part in ("train", "test"))
    side = FeatureSide.draw(terms, train.shape[1], job["seed"])
    bits = {"bits": terms.key_bits} if terms.scheme == "paillier" else {}
    party = FeatureParty(channel, terms, side, encryption.owner(terms.scheme, **bits))
    _timed(ends, party.owner, lambda: party.train(train, _on_step(job, side, trace, channel)))
    if len(test):
        party.predict(test)
    return side, {}, party.owner


def _ratings(channel: Channel, terms: Terms, job: dict, data: dict, trace: list, ends: dict):
    train, test, ratings = (torch.from_numpy(data[part]) for part in ("train", "test", "ratings"))
    side = RatingSide.draw(terms, seed=job["seed"], **job["model"])
    party = RatingParty(channel, terms, side, encryption.evaluator)
    losses = _timed(ends, party.evaluator, lambda: party.train(train, ratings, _on_step(job, side, trace, channel)))
    found = {"losses": np.array(losses)}
    if len(test):
        found["predicted"] = party.predict(test).numpy()
    return side, found, party.evaluator


def main() -> None:
    """Answer line by line until the input ends."""
    orders.serve(take_part)


if __name__ == "__main__":
    main()

"""The stand-in client, as a program of its own: it runs models, trains them, and takes part in a federation."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fl_utils import federation
from fl_utils.export import export
from fl_utils.models.mobile import small_cnn_600k
from fl_utils.on_device import order
from fl_utils.on_device.litert import LiteRTTrainer
from fl_utils.on_device.server import Server, new_tokens
from fl_utils.paths import ROOT
from fl_utils.training import LocalTraining, Trainer

BATCH = 32  # of the export in conftest.py
STANDIN = ROOT / "mobile" / "standin"
# The client, then a look at what it brought in: a phone has neither torch nor this repository.
ALONE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import client
code = client.main(sys.argv[1:])
brought = {"torch", "fl_utils"} & {name.partition(".")[0] for name in sys.modules}
sys.exit(f"brought in {brought}" if brought else code)
"""


def program(*arguments, token=""):
    """A finished run of the client in a process of its own."""
    command = [sys.executable, "-c", ALONE, STANDIN, *arguments]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=240, env=os.environ | {"FL_TOKEN": token}
    )


def last_line(done):
    """What a client that failed says: one line, and no traceback."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_two_clients_over_http_equal_the_same_federation_in_torch(contract, saved, digits):
    local, tokens = LocalTraining(local_epochs=2, batch_size=BATCH, learning_rate=0.1), new_tokens([0, 1])
    with Server(contract, tokens) as server, ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(program, "join", contract, saved[id], "--server", server.address, "--client", id, token=token)
            for id, token in tokens.items()
        ]
        clients = server.clients(timeout=200)
        assert [len(client) for client in clients] == [70, 45]
        assert all(client.x.numel() == 0 for client in clients)
        result = federation.run(
            small_cnn_600k, clients, rounds=2, local=local, seed=3, executor=server, client_timeout=200
        )
        server.shutdown()
        done = [run.result() for run in runs]
    assert [run.returncode for run in done] == [0, 0], done
    assert "the federation is over after 2 rounds of this client" in done[0].stdout

    own = [
        federation.Client(0, digits[0][:70], digits[1][:70]),
        federation.Client(1, digits[0][70:115], digits[1][70:115]),
    ]
    expected = federation.run(small_cnn_600k, own, rounds=2, local=local, seed=3, train=order.train)
    assert torch.abs(result.vector - expected.vector).max() < 1e-4
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert torch.abs(result.vector - Trainer(small_cnn_600k).vector).max() > 1e-3
    assert [r.train_loss for r in result.rounds] == pytest.approx([r.train_loss for r in expected.rounds], abs=1e-4)
    assert server.bytes_up == pytest.approx(result.bytes_up, rel=1e-3)
    assert server.bytes_down == pytest.approx(result.bytes_down, rel=1e-3)


def test_personalising_equals_the_trainers(contract, saved, tmp_path, digits):
    done = program("personalise", contract, saved[0], "--epochs", 2, "--seed", 9, "--out", tmp_path / "state.bin")
    assert done.returncode == 0, done.stderr
    trainer = LiteRTTrainer(contract)
    trainer.train(digits[0][:70].numpy(), digits[1][:70].numpy(), 2, BATCH, 0.1, 9)
    assert np.allclose(np.fromfile(tmp_path / "state.bin", "<f4"), trainer.vector, atol=1e-6)
    right = 100 * trainer.accuracy(digits[0][:70].numpy(), digits[1][:70].numpy())
    assert f"{right:.2f} % right" in done.stdout.splitlines()[-1]


def test_an_exported_onnx_model_is_classified_as_in_torch(network, saved, digits, tmp_path):
    made = export(network, (8, 1, 28, 28), list("0123456789"), "onnx", tmp_path)
    done = program("classify", made.path, saved[0])
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        right = 100 * (network(digits[0][:70]).argmax(1) == digits[1][:70]).float().mean()
    assert done.stdout.strip() == f"70 images, {right:.2f} % right"
    model = made.path.parent / made.file
    model.write_bytes(model.read_bytes()[:-1])
    assert "truncated or altered" in last_line(program("classify", made.path, saved[0]))


def test_what_a_client_cannot_use_is_one_line(contract, saved, tmp_path):
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, 30, 28, 1), np.uint8), y=np.zeros(2, np.int64))
    assert "want uint8 [N, 28, 28, 1] and N labels" in last_line(program("classify", contract, tmp_path / "wide.npz"))
    assert "join wants --server, --client" in last_line(program("join", contract, saved[0]))
    refused = program("join", contract, saved[0], "--server", "http://127.0.0.1:9", "--client", 0, token="x" * 20)
    assert "cannot be reached to join" in last_line(refused)

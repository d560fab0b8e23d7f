"""One export of the CNN of Table 6.2 for all tests here, in whichever process of pytest it is asked for first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from filelock import FileLock

from fl_utils.data import images
from fl_utils.models.mobile import small_cnn_600k
from fl_utils.on_device.litert import export_training

BATCH = 32


@pytest.fixture(scope="session")
def network():
    """The CNN of Table 6.2 with the weights of one seed."""
    torch.manual_seed(0)
    return small_cnn_600k()


@pytest.fixture(scope="session")
def contract(network, tmp_path_factory, worker_id):
    """The path of its contract with a training step; read only."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "on_device_export"
    with FileLock(f"{folder}.lock"):
        path = folder / "training.litert.contract.json"
        if not path.exists():
            assert export_training(network, BATCH, 0.1, folder).path == path
    return path


@pytest.fixture(scope="session")
def digits():
    """Real digits: uint8 [600, 1, 28, 28] and labels."""
    found = images.load("digits", limit=600)["mnist"]
    return found.x, found.y


@pytest.fixture
def saved(tmp_path, digits):
    """Two clients' folders of .npz files: 70 and 45 digits, uint8 [N, 28, 28, 1]."""
    x, y = digits
    folders = []
    for client, chosen in enumerate((slice(0, 70), slice(70, 115))):
        folder = tmp_path / f"client_{client}"
        folder.mkdir()
        pixels, labels = x[chosen].permute(0, 2, 3, 1).numpy(), y[chosen].numpy()
        for part, (a, b) in enumerate(zip(np.array_split(pixels, 2), np.array_split(labels, 2), strict=True)):
            np.savez(folder / f"part_{part}.npz", x=a, y=b)
        folders.append(folder)
    return folders

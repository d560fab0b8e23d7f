"""Flower's simulation on Ray, in ``.venv-rivals``: message API, FedAvg, one virtual client engine actor.

Its best case: an actor keeps model and data from client to client, and trains in a loop without a data loader.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable

import torch
from torch.nn import functional

from benchmarks.rivals.job import BATCH, RATE, Task, answers, parameters, serve

NODES = 100
_kept: dict[str, tuple] = {}  # of an actor: the task it is at, and its model


def at_work(path: str) -> tuple[Task, torch.nn.Module]:
    """An actor's task and model, read once."""
    if path not in _kept:
        torch.set_num_threads(1)
        _kept.clear()
        task = Task.load(path)
        _kept[path] = task, task.model()
    return _kept[path]


def train(message, context):
    """One client's part of a round. Which client: the server says, for nodes are all alike."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    from benchmarks.rivals import flower_run  # in an actor this function came by value, without what is kept

    about = message.content["config"]
    task, model = flower_run.at_work(about["task"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    x, y = task.shuffled(about["block"], about["number"], about["place"])
    for inputs, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(content=RecordDict(content), reply_to=message)


def strategy(task: Task, path: str, block: int):
    """Flower's FedAvg over the task's cohorts instead of drawn ones."""
    from flwr.app import ConfigRecord, Message, MessageType, RecordDict
    from flwr.serverapp.strategy import FedAvg

    class Given(FedAvg):
        def configure_train(self, server_round, arrays, config, grid) -> Iterable[Message]:
            nodes, cohort = sorted(grid.get_node_ids()), task.cohorts.shape[2]
            for place in range(cohort):
                about = {"task": path, "block": block, "number": server_round - 1, "place": place}
                content = RecordDict({"arrays": arrays, "config": ConfigRecord(about)})
                yield Message(content=content, message_type=MessageType.TRAIN, dst_node_id=nodes[place])

    return Given(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)


class Flower:
    """A run of the strategy for each block, from the arrays in which the last one ended."""

    def __init__(self, grid, task: Task):
        from flwr.app import ArrayRecord

        self.grid, self.task = grid, task
        self.arrays = ArrayRecord(task.model().state_dict())

    def run(self, block: int) -> None:
        """The block's rounds of federated averaging."""
        own = strategy(self.task, self.task.path, block)
        result = own.start(grid=self.grid, initial_arrays=self.arrays, num_rounds=self.task.cohorts.shape[1])
        if len(result.train_metrics_clientapp) != self.task.cohorts.shape[1]:
            raise RuntimeError(f"Flower: {len(result.train_metrics_clientapp)} rounds of block {block} had replies")
        self.arrays = result.arrays

    def vector(self) -> torch.Tensor:
        """The trainable parameters, float32 [d']."""
        model = self.task.build()
        model.load_state_dict(self.arrays.to_torch_state_dict())
        return parameters(model)


def main() -> None:
    """Serve from within a simulation."""
    replies = answers()
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()
    client.train()(train)

    @server.main()
    def _(grid, context) -> None:
        serve(lambda task: Flower(grid, task), "flwr", replies)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run_simulation(
            server, client, num_supernodes=NODES,
            backend_config={
                "init_args": {"num_cpus": 1, "include_dashboard": False, "_temp_dir": folder},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

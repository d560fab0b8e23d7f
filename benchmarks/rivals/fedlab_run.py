"""FedLab: its serial trainer, synchronous handler and standalone pipeline, in ``.venv-rivals``."""

from __future__ import annotations

import logging

import torch

from benchmarks.rivals.job import BATCH, RATE, Task, parameters, serve


class FedLab:
    """One pipeline for all blocks; it asks this for its cohorts and for the loaders of its clients."""

    def __init__(self, task: Task):
        from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
        from fedlab.contrib.algorithm.basic_server import SyncServerHandler
        from fedlab.core.standalone import StandalonePipeline

        contender = self

        class Handler(SyncServerHandler):
            def sample_clients(self) -> list[int]:
                return contender.cohort()

        class Pipeline(StandalonePipeline):
            def evaluate(self) -> None:
                contender.number += 1

        self.task, self.block, self.number = task, 0, 0
        count, cohort = len(task.y), task.cohorts.shape[2]
        silent = logging.getLogger("FedLab")
        silent.setLevel(logging.WARNING)
        trainer = SGDSerialClientTrainer(task.model(), count, logger=silent)
        trainer.setup_dataset(self)
        trainer.setup_optim(1, BATCH, RATE)
        self.handler = Handler(task.model(), 0, cohort / count, logger=silent)
        self.pipeline = Pipeline(self.handler, trainer)

    def cohort(self) -> list[int]:
        """The clients of the round that begins."""
        return self.task.cohorts[self.block, self.number].tolist()

    def get_dataloader(self, client: int, batch_size: int) -> torch.utils.data.DataLoader:
        """As FedLab asks of a data set: the client's minibatches."""
        data = torch.utils.data.TensorDataset(self.task.x[client], self.task.y[client])
        order = self.task.order(self.block, self.number, self.cohort().index(client)).tolist()
        return torch.utils.data.DataLoader(data, batch_size, sampler=order)

    def run(self, block: int) -> None:
        """The block's rounds of federated averaging."""
        self.block, self.number = block, 0
        self.handler.global_round += self.task.cohorts.shape[1]
        self.pipeline.main()

    def vector(self) -> torch.Tensor:
        """The trainable parameters, float32 [d']."""
        return parameters(self.handler.model)


if __name__ == "__main__":
    serve(FedLab, "fedlab")

"""Apple's pfl: its FederatedAveraging on its simulated backend, in ``.venv-rivals``."""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.rivals.job import BATCH, RATE, Task, parameters, serve


class Pfl:
    """One model, one backend for all blocks; its data sets are the task's clients, already in the round's order."""

    def __init__(self, task: Task):
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.data.dataset import Dataset
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.metrics import Weighted
        from pfl.model.pytorch import PyTorchModel

        self.task, self.model, self.at = task, task.model(), (0, 0, 0)
        self.model.loss = lambda x, y, eval=False: functional.cross_entropy(self.model(x), y)
        self.model.metrics = lambda x, y, eval=False: {"examples": Weighted(len(y), 1)}

        def upcoming() -> int:
            block, number, place = self.at
            last = place + 1 == task.cohorts.shape[2]
            self.at = (block, number + 1, 0) if last else (block, number, place + 1)
            self.drawn = block, number, place
            return int(task.cohorts[block, number, place])

        def make(client: int) -> Dataset:
            return Dataset(raw_data=list(task.shuffled(*self.drawn)), user_id=str(client))

        data = FederatedDataset(make, upcoming)
        self.backend = SimulatedBackend(training_data=data, val_data=data)
        self.own = PyTorchModel(
            model=self.model, local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(self.model.parameters(), lr=1.0),
        )  # fmt: skip

    def run(self, block: int) -> None:
        """The block's rounds of federated averaging, without evaluation."""
        from pfl.algorithm.base import NNAlgorithmParams
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams

        _, rounds, cohort = self.task.cohorts.shape
        self.at = (block, 0, 0)
        FederatedAveraging().run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=rounds, evaluation_frequency=10**9, train_cohort_size=cohort, val_cohort_size=0
            ),
            backend=self.backend,
            model=self.own,
            model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH),
            model_eval_params=NNEvalHyperParams(local_batch_size=None),
            callbacks=[],
        )

    def vector(self) -> torch.Tensor:
        """The trainable parameters, float32 [d']."""
        return parameters(self.model)


if __name__ == "__main__":
    serve(Pfl, "pfl")

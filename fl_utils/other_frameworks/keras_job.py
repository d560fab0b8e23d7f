"""The small VGG in Keras 3, on TensorFlow or on JAX, in an environment of their own (make keras).

    python keras_job.py JOB.npz RESULT.npz

JOB holds ``backend`` ("tensorflow" or "jax"), ``widths`` int64 (0: pooling), ``images`` float32 [N, 3, S, S] as the
network takes them, and one or both of

* ``parameter_0`` ..: torch's weights and biases, layer by layer;
* ``train_x`` uint8 [M, 3, H, W], ``train_y`` int64 [M], ``settings`` float64: classes, embedding, epochs, batch size,
  rate, momentum, seed. Then the network is trained, from Keras' own first weights where no parameters are given, by
  Table 11's recipe for TensorFlow's VGG-16 (flip, random crop, means), and the last smaller batch is dropped.

RESULT gets ``embeddings`` [N, embedding], ``parameter_0`` .. (the first weights, in torch's shapes), ``losses`` of the
epochs, and ``normalised_torch``, ``_tf``, ``_caffe``: what Keras' own ``preprocess_input`` makes of the first image as
pixels. RESULT.json gets the versions and the CPU seconds of the training.
"""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

MEANS = np.array([123.68, 116.779, 103.939], np.float32)  # Table 11: TensorFlow, VGG-16


def to_keras(values: list[np.ndarray], side: int) -> list[np.ndarray]:
    """Torch's parameters as Keras has them: channels last, and the first dense layer's inputs in the order H, W, C."""
    out = []
    for value in values:
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            if len(out) and out[-2].ndim == 4:
                value = value.reshape(len(value), -1, side, side).transpose(0, 2, 3, 1).reshape(len(value), -1)
            value = value.T
        out.append(value)
    return out


def to_torch(values: list[np.ndarray], side: int) -> list[np.ndarray]:
    """The way back."""
    out = []
    for value in values:
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T
            if len(out) and out[-2].ndim == 4:
                value = value.reshape(len(value), side, side, -1).transpose(0, 3, 1, 2).reshape(len(value), -1)
        out.append(np.ascontiguousarray(value))
    return out


def build(keras, widths, size: int, embedding: int, classes: int):
    """The network (to logits), the part of it that gives the embeddings, and the side of the last map."""
    inputs = x = keras.Input((size, size, 3))
    for width in widths:
        x = (
            keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
            if width
            else keras.layers.MaxPool2D()(x)
        )
    side = x.shape[1]
    embedded = keras.layers.Dense(embedding)(keras.layers.Flatten()(x))
    logits = keras.layers.Dense(classes)(keras.layers.ReLU()(embedded))
    return keras.Model(inputs, logits), keras.Model(inputs, embedded), side


def prepared(images: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Each image flipped or not, cut out at random, less the means: uint8 [B, 3, H, W] to float32 [B, S, S, 3]."""
    out = np.empty((len(images), size, size, 3), np.float32)
    for row, image in enumerate(images):
        top, left = (random.integers(side - size + 1) for side in image.shape[1:])
        image = image[:, :, ::-1] if random.random() < 0.5 else image
        out[row] = image[:, top : top + size, left : left + size].transpose(1, 2, 0)
    return out - MEANS


def train(keras, model, job: dict, size: int, settings: list[float]) -> list[float]:
    """Train as ``settings`` say; the mean loss of each epoch."""
    _, _, epochs, batch, rate, momentum, seed = settings
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=momentum), loss)
    random, batch, losses = np.random.default_rng(int(seed)), int(batch), []
    for _ in range(int(epochs)):
        order, found = random.permutation(len(job["train_x"])), []
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            model.reset_metrics()
            found.append(model.train_on_batch(prepared(job["train_x"][chosen], size, random), job["train_y"][chosen]))
        losses.append(float(np.mean([np.asarray(value) for value in found])))
    return losses


def main(job_path: str, result_path: str) -> None:
    with np.load(job_path, allow_pickle=False) as file:
        job = dict(file)
    backend = str(job["backend"])
    os.environ.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3", JAX_PLATFORMS="cpu")
    import keras

    if backend == "tensorflow":
        import tensorflow

        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    given = [job[f"parameter_{n}"] for n in range(sum(name.startswith("parameter_") for name in job))]
    settings = job["settings"].tolist() if "settings" in job else [len(given[-1]), len(given[-3]), 0, 1, 0, 0, 0]
    keras.utils.set_random_seed(int(settings[-1]))
    images, size = job["images"], job["images"].shape[2]
    model, embed, side = build(keras, job["widths"].tolist(), size, int(settings[1]), int(settings[0]))
    if given:
        model.set_weights(to_keras(given, side))
    first = to_torch([np.asarray(value) for value in model.get_weights()], side)
    begun = time.process_time()
    losses = train(keras, model, job, size, settings) if "train_x" in job else []
    seconds = time.process_time() - begun
    embeddings = embed.predict(images.transpose(0, 2, 3, 1), batch_size=64, verbose=0)
    normalised = {
        f"normalised_{mode}": keras.applications.imagenet_utils.preprocess_input(
            images[:1].transpose(0, 2, 3, 1).copy(), mode=mode, data_format="channels_last"
        ).transpose(0, 3, 1, 2)
        for mode in ("torch", "tf", "caffe")
    }
    parameters = {f"parameter_{number}": value for number, value in enumerate(first)}
    np.savez(result_path, embeddings=embeddings, losses=np.array(losses), **parameters, **normalised)
    names = ("keras", {"tensorflow": "tensorflow-cpu"}.get(backend, backend))
    about = {"versions": {name: metadata.version(name) for name in names}, "seconds": seconds}
    Path(result_path).with_suffix(".json").write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

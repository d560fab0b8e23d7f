"""Networks whose every layer gives a gradient per example, for training under differential privacy.

Those that read text mask the padding instead of keeping a row of zeros: noise goes to every row of the table.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import functional


class PrivateSentimentLSTM(nn.Module):
    """:class:`fl_utils.models.text.SentimentLSTM` in layers that can be hooked: same parameters, same outputs.

    ``nn.LSTM`` runs in one fused kernel, which gives no gradient per example; here each of its layers is one linear map
    of all time steps' inputs and one of the state, step by step. :func:`from_twin` and :func:`to_twin` rename a state.

    Input: token ids int64 [N, length], 0 = padding on the right. Output: logits float32 [N].
    """

    def __init__(self, vocabulary: int, embedding: int = 512, hidden: int = 256, layers: int = 2, dropout: float = 0.3):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.ModuleList(_Recurrent(embedding if n == 0 else hidden, hidden) for n in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        known = tokens != 0
        states = self.embedding(tokens) * known.unsqueeze(2)
        for layer in self.lstm:
            states = layer(states)
        last = (known.sum(1).clamp(min=1) - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return self.output(self.dropout(states.gather(1, last).squeeze(1))).squeeze(1)


class _EachStep(nn.Linear):
    """A linear map used once per time step: a type of its own, since Opacus' ghost rule for nn.Linear knows one use."""


class _Recurrent(nn.Module):
    """One layer of an LSTM, gates in torch's order: [N, length, inputs] -> [N, length, hidden]."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.ih, self.hh = nn.Linear(inputs, 4 * hidden), _EachStep(hidden, 4 * hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        from_inputs = self.ih(inputs)
        state = cell = from_inputs.new_zeros(len(inputs), self.hh.in_features)
        states = []
        for step in range(inputs.shape[1]):
            entry, forget, new, exit = (from_inputs[:, step] + self.hh(state)).chunk(4, 1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(entry) * torch.tanh(new)
            state = torch.sigmoid(exit) * torch.tanh(cell)
            states.append(state)
        return torch.stack(states, 1)


def from_twin(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a SentimentLSTM as one of a :class:`PrivateSentimentLSTM`."""
    return {re.sub(r"^lstm\.(weight|bias)_(ih|hh)_l(\d+)$", r"lstm.\3.\2.\1", name): t for name, t in state.items()}


def to_twin(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a :class:`PrivateSentimentLSTM` as one of a SentimentLSTM."""
    return {re.sub(r"^lstm\.(\d+)\.(ih|hh)\.(weight|bias)$", r"lstm.\3_\2_l\1", name): t for name, t in state.items()}


class WordWeights(nn.Module):
    """Logistic regression on words: one weight per word, summed over a text and divided by the root of its length.

    The smallest model of sentiment; where an LSTM would take too long, or its parameters too much noise. An example's
    gradient has a norm of at most 1, however long the text, unless words repeat.
    Input: token ids int64 [N, length], 0 = padding. Output: logits float32 [N]; 0 for a text without words.
    """

    def __init__(self, vocabulary: int):
        super().__init__()
        self.weights = nn.Embedding(vocabulary, 1)
        nn.init.zeros_(self.weights.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        known = tokens != 0
        return (self.weights(tokens).squeeze(2) * known).sum(1) / known.sum(1).clamp(min=1).sqrt()


class PixelWeights(nn.Module):
    """Softmax regression on pixels, averaged two by two: the smallest model of characters, as WordWeights of texts.

    Input: uint8 [N, 1, H, W], H = W = ``image_size``, background 0. Output: logits float32 [N, classes], 0 at first.
    """

    def __init__(self, classes: int, image_size: int = 16):
        super().__init__()
        self.output = nn.Linear((image_size // 2) ** 2, classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(functional.avg_pool2d(_centred(images), 2).flatten(1))


class TinyCharacterCNN(nn.Module):
    """One layer of 5x5 convolutions with stride 3, tanh, one linear layer: few parameters, so little noise in all.

    A bounded activation keeps gradients small, and clipping then takes less from them (Papernot et al. 2021).
    Inputs and outputs as in :class:`PixelWeights`.
    """

    def __init__(self, classes: int, image_size: int = 16, width: int = 6):
        super().__init__()
        self.convolution = nn.Conv2d(1, width, 5, stride=3, padding=1)
        self.output = nn.Linear(width * ((image_size - 3) // 3 + 1) ** 2, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(torch.tanh(self.convolution(_centred(images))).flatten(1))


def _centred(images: torch.Tensor) -> torch.Tensor:
    """0 .. 255 as about -0.5 .. 2.8: mean near 0 and deviation near 1 where most is background."""
    return images * (1 / 76.5) - 0.5

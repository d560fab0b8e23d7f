"""Networks that read text."""

from __future__ import annotations

import torch
from torch import nn


class SentimentLSTM(nn.Module):
    """The sentiment model of Hu et al. 2020, section 3.4: embedding, LSTM layers, dropout, one fully connected output.

    Input: token ids int64 [N, length], 0 = padding on the right. Output: logits float32 [N]; their sigmoid, which the
    paper draws as the last layer, is the probability that a text is positive (the loss takes it in).
    """

    def __init__(self, vocabulary: int, embedding: int = 512, hidden: int = 256, layers: int = 2, dropout: float = 0.3):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        lengths = (tokens != 0).sum(1).clamp(min=1)
        tokens = tokens[:, : int(lengths.max())]  # no step over columns that are padding for everybody
        states, _ = self.lstm(self.embedding(tokens))
        last = states[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return self.output(self.dropout(last)).squeeze(1)

"""The controller: an LSTM that decides one variable after another.

Every decision has a softmax and an embedding of its own; the input of a step is the
embedding of the decision before it. Decisions with fewer options than the largest are
padded and masked, so that all softmaxes are one product.

Source:
    Zoph et al. (2018), arXiv:1707.07012: one layer of 100 units. Weights are drawn from
    [-0.1, 0.1], as Cubuk et al. (2019), arXiv:1805.09501, do for a like controller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT = 0.1


class Controller(nn.Module):
    """A distribution over tuples of T choices, the t-th of ``cardinalities[t]`` options.

    Args:
        cardinalities: Options of each decision.
        hidden: Units of the LSTM, and size of the embeddings.
        generator: Source of the first weights.
    """

    legal: Tensor

    def __init__(
        self, cardinalities: Sequence[int], *, hidden: int = 100, generator: torch.Generator
    ) -> None:
        super().__init__()
        length, most = len(cardinalities), max(cardinalities)
        self.start = nn.Parameter(torch.empty(hidden))
        self.embeddings = nn.Parameter(torch.empty(length, most, hidden))
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.weight = nn.Parameter(torch.empty(length, most, hidden))
        self.bias = nn.Parameter(torch.empty(length, most))
        legal = torch.arange(most) < torch.tensor(list(cardinalities))[:, None]
        self.register_buffer("legal", legal, persistent=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-INIT, INIT, generator=generator)

    def forward(self, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies of every decision, given those before it.

        Args:
            choices: ``(batch, T)``, int64.

        Returns:
            Two tensors ``(batch, T)``: the logarithm of the probability of each choice, and
            the entropy of the distribution that it was drawn from, in nats.
        """
        log_probs = self._log_probs(choices)
        chosen = log_probs.gather(2, choices[..., None])[..., 0]
        # Options that do not exist have a probability of 0, and 0 log 0 = 0.
        entropies = -(log_probs.exp() * log_probs.masked_fill(~self.legal, 0.0)).sum(-1)
        return chosen, entropies

    @torch.no_grad()
    def marginals(self, choices: Tensor) -> Tensor:
        """Estimate how likely every option of every decision is, whatever was decided before.

        Args:
            choices: Tuples that this controller drew, ``(batch, T)``.

        Returns:
            The mean over ``choices`` of each decision's distribution given those before it,
            ``(T, most options)``: rows add up to 1, options that do not exist have 0. It varies
            less with the draw than counting what was drawn.
        """
        return self._log_probs(choices).exp().mean(0)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` tuples: ``(count, T)``, int64."""
        return self._decide(count, generator)

    @torch.no_grad()
    def greedy(self) -> Tensor:
        """Return the tuple that takes the likeliest option at every step: ``(T,)``."""
        return self._decide(1, None)[0]

    def _log_probs(self, choices: Tensor) -> Tensor:
        """Return the logarithms of all options' probabilities: ``(batch, T, most options)``."""
        batch, length = choices.shape
        before = self.embeddings[torch.arange(length - 1), choices[:, :-1]]
        start = self.start.expand(batch, 1, -1)
        hidden, _ = self.lstm(torch.cat([start, before], dim=1))
        logits = torch.einsum("bth,toh->bto", hidden, self.weight) + self.bias
        return self._log_softmax(logits, self.legal)

    def _decide(self, count: int, generator: torch.Generator | None) -> Tensor:
        given, state = self.start.expand(count, -1), None
        found = []
        for at, legal in enumerate(self.legal):
            hidden, state = self.lstm(given[:, None], state)
            logits = F.linear(hidden[:, 0], self.weight[at], self.bias[at])
            log_probs = self._log_softmax(logits, legal)
            if generator is None:
                choice = log_probs.argmax(1)
            else:
                choice = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
            found.append(choice)
            given = self.embeddings[at, choice]
        return torch.stack(found, dim=1)

    def _log_softmax(self, logits: Tensor, legal: Tensor) -> Tensor:
        return logits.masked_fill(~legal, -math.inf).log_softmax(-1)

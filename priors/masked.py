"""A prior that sees both sides: a bidirectional transformer over grids of which some codes are hidden, as MaskGIT [1].

It predicts every hidden code from all visible ones, wherever these lie, so that in a completion the given codes count
on every side. A grid is drawn in a few rounds: each predicts all hidden codes at once and draws some of them, which are
visible from the next round on. Codes of one round are drawn independently of each other. So those of a round should lie
far apart: they follow a Halton sequence [2], a fixed order that fills the grid evenly.

Its predictions for different sets of visible codes need not agree with any one distribution over grids, so there is no
exact likelihood. Training minimises the cross-entropy of the hidden codes given the rest.

Papers, cited by number in the code:
[1] Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, arXiv:2202.04200
[2] Besnier et al., Halton Scheduler for Masked Generative Image Transformer, 2025, arXiv:2503.17076
"""
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules import check_kernel_size
from priors.attention import FREQUENCIES, TransformerBlock, check_heads, fourier
from priors.draws import guide

HIDDEN_SHARE = 2 / math.pi  # of the codes that a mask of training hides, on average: the mean of cos(pi r / 2)

# ---------------------------------------------------------------------------------------------------------
# The network


@dataclass
class MaskedConfig:
    """The sizes of a masked prior, from which a checkpoint rebuilds it. ValueError where they make no network."""

    num_codes: int     # K
    num_classes: int   # 0: there are no classes
    hidden: int        # channels
    layers: int        # blocks
    kernel_size: int   # of the convolution at its start, odd
    heads: int         # they share the `hidden` channels
    dropout: float = 0.0  # share of the inputs and of every residual that a training step sets to 0

    def __post_init__(self) -> None:
        check_kernel_size(self.kernel_size)
        check_heads(self.hidden, self.heads)


class Masked(nn.Module):
    """A transformer without a causal mask [1] over grids of codes, of any height and width, some of them hidden.

    It starts from a convolution, so that the nearest codes are at hand from the first layer on. A hidden code, -1, has
    an embedding of its own. Class `num_classes` means "no class", as in PixelCNN.
    """

    def __init__(self, config: MaskedConfig):
        super().__init__()
        self.config = config
        hidden, layers, heads, kernel_size = config.hidden, config.layers, config.heads, config.kernel_size
        self.num_classes = config.num_classes
        self.embedding = nn.Embedding(config.num_codes + 1, hidden)  # the last row is that of a hidden code
        self.near = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2)
        self.condition = nn.Embedding(config.num_classes + 1, hidden)
        self.place = nn.Linear(4 * FREQUENCIES, hidden)
        self.blocks = nn.ModuleList(TransformerBlock(hidden, heads, config.dropout, causal=False)
                                    for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, config.num_codes)
        nn.init.normal_(self.embedding.weight, std=0.5)
        for weight in (self.condition.weight, self.head.weight):
            nn.init.normal_(weight, std=0.02)

    def features(self, codes: Tensor, labels: Tensor) -> Tensor:
        """What `head` turns into logits, (B, N, C), for the N positions in raster order. codes, labels: see forward."""
        height, width = codes.shape[1:]
        embedded = self.embedding(codes.masked_fill(codes < 0, self.config.num_codes)).permute(0, 3, 1, 2)
        x = self.near(embedded).flatten(2).transpose(1, 2) + self.condition(labels)[:, None]
        x = F.dropout(x + self.place(fourier(height, width, codes.device)), self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Logits of every code given the visible ones: codes (B, H, W) int64, -1 where one is hidden, labels (B,) int64
        in [0, num_classes]. Returns (B, K, H, W); they mean something where a code is hidden.
        """
        return self.head(self.features(codes, labels)).transpose(1, 2).unflatten(2, codes.shape[1:])


# ---------------------------------------------------------------------------------------------------------
# Training


def masks(chance: Tensor, height: int, width: int) -> Tensor:
    """Which codes are hidden, (B, height, width) bool, for each row of chance (B, 1 + height * width) in [0, 1).

    The first number r says how many: the share cos(pi r / 2) ([1], section 3.3), rounded up, and at least one. The
    others say which: those of the lowest numbers.
    """
    count = (chance[:, :1].mul(math.pi / 2).cos() * (height * width)).ceil().clamp_min(1)
    ranks = chance[:, 1:].argsort(1).argsort(1)
    return (ranks < count).unflatten(1, (height, width))


def random_masks(count: int, height: int, width: int) -> Tensor:
    """Masks (count, height, width) for a step of training, by torch's generator."""
    return masks(torch.rand(count, 1 + height * width), height, width)


def fixed_masks(count: int, height: int, width: int) -> Tensor:
    """Masks (count, height, width) for a split: mask i depends on i alone, so that a split is measured the same way
    every time.
    """
    chance = np.random.default_rng(0).random((count, 1 + height * width), np.float32)
    return masks(torch.from_numpy(chance), height, width)


def hidden(count: int, height: int, width: int, fixed: bool = False) -> list[Tensor]:
    """What `terms` takes beside codes and labels: which of the codes of `count` grids are hidden."""
    return [(fixed_masks if fixed else random_masks)(count, height, width)]


def terms(model: nn.Module, codes: Tensor, labels: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """The loss of grids of codes (B, H, W), of which those in hidden (B, H, W) bool are predicted from the rest.

    hidden_nll: the cross-entropy of the hidden codes in nats ([1], eq. 1), over the number that a mask hides on
    average: a mean over the grids, so that processes can share a batch. hidden: (2,) the sum of the nats, and the
    number of hidden codes.
    """
    codes = codes.long()
    logits = model(codes.masked_fill(hidden, -1), labels).float().permute(0, 2, 3, 1)
    nats = F.cross_entropy(logits[hidden], codes[hidden], reduction="sum")
    return {"hidden_nll": nats / (codes.numel() * HIDDEN_SHARE), "hidden": torch.stack([nats, hidden.sum().to(nats)])}


def summarise(totals: dict[str, Tensor], _: int = 0) -> dict[str, float]:
    """A split's cross-entropy of a hidden code given the rest, in nats and in bits, from its sums of `terms`."""
    nats, count = totals["hidden"].tolist()
    return {"hidden_nll": nats / count, "bits_per_hidden_code": nats / count / math.log(2)}


# ---------------------------------------------------------------------------------------------------------
# Drawing


def mirrored(base: int, count: int) -> tuple[Tensor, int]:
    """Points 0 to count - 1 of the van der Corput sequence: the digits of i in this base, mirrored about the point.

    Returns the numerators (count,) int64, and the denominator that all points share: whole numbers, so that no rounding
    puts a point into another cell.
    """
    number, point, denominator = torch.arange(count), torch.zeros(count, dtype=torch.int64), 1
    while denominator < count:
        point = point * base + number % base
        number = number // base
        denominator *= base
    return point, denominator


@cache
def halton_order(height: int, width: int) -> Tensor:
    """The order in which codes are drawn: raster positions (height * width,), each once.

    It follows the Halton sequence in bases 2 and 3 [2], from its second point on, over the unit square; a
    point in a cell that was visited before is passed over.
    """
    count, first = 4 * height * width, torch.empty(0)
    while len(first) < height * width:
        (row, rows), (column, columns) = mirrored(2, count), mirrored(3, count)
        cells = ((row * height // rows) * width + column * width // columns)[1:].numpy()
        first = np.unique(cells, return_index=True)[1]
        count *= 2
    return torch.from_numpy(cells[np.sort(first)])


def schedule(count: int, steps: int) -> list[int]:
    """How many of `count` codes each round draws, few in the first and many in the last.

    After round t of T a share of cos(pi t / 2T) is still hidden ([1], section 3.3), but every round draws a code. T is
    `steps`, at most one for each code; 0: that many.
    """
    rounds = min(steps or count, count)
    left = [math.floor(min(count * math.cos(math.pi / 2 * t / rounds), count - t)) for t in range(rounds)] + [0]
    return [before - after for before, after in zip(left, left[1:])]


def plan_rounds(hidden: Tensor, steps: int) -> Tensor:
    """The round (B, H, W) in which each code of hidden (B, H, W) bool is drawn, -1 for the others.

    A grid's rounds depend on its own hidden codes alone. steps: as for `schedule`.
    """
    order = halton_order(*hidden.shape[1:])
    rounds = torch.full(hidden.shape, -1)
    for row, drawn in zip(rounds.flatten(1), hidden.cpu().flatten(1)[:, order]):
        sizes = schedule(int(drawn.sum()), steps)
        row[order[drawn]] = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    return rounds.to(hidden.device)


@torch.no_grad()
def draw_in_rounds(model: Masked, labels: Tensor, uniform: Tensor, known: Tensor, steps: int, guidance: float,
                   draw: Callable[[Tensor, Tensor], Tensor]) -> Iterator[tuple[float, Tensor]]:
    """Draw the hidden codes of grids round by round: yields the share of the rounds that are done, and the grids
    (B, H, W) int64, -1 where a code is still hidden. The last ones are whole.

    labels: (B,) classes, `num_classes` for none. uniform: (B, H, W) in [0, 1), the chance. known: (B, H, W) codes that
    are visible from the start, -1 where one is to be drawn. steps: as for `schedule`. guidance: s of `draws.guide`; 1:
    none. draw: the rule that chooses codes (M,) from logits (M, K) and chance (M,).
    """
    codes, rounds = known.clone(), plan_rounds(known < 0, steps)
    count = int(rounds.max()) + 1
    if guidance != 1:
        labels = torch.cat([labels, torch.full_like(labels, model.num_classes)])
    yield 0.0, codes
    for number in range(count):
        now = rounds == number
        if guidance == 1:
            logits = model.head(model.features(codes, labels)[now.flatten(1)])
        else:
            twice = model.features(codes.repeat(2, 1, 1), labels)[now.repeat(2, 1, 1).flatten(1)]
            logits = guide(*model.head(twice).chunk(2), guidance)
        codes[now] = draw(logits, uniform[now])
        yield (number + 1) / count, codes


@torch.no_grad()
def nats_in_rounds(model: Masked, codes: Tensor, labels: Tensor, given: Tensor, steps: int) -> Tensor:
    """What codes (B, H, W) hidden from the model take in nats (B,), drawn as `draw_in_rounds` would draw them.

    Each counts as the logits of its round have it, given the codes of `given` (B, H, W) bool and of earlier rounds. The
    sum is exact for this way of drawing; with another order or other rounds it would be another.
    """
    rounds, nats = plan_rounds(~given, steps), torch.zeros(codes.shape, device=codes.device)
    for number in range(int(rounds.max()) + 1):
        now = rounds == number
        logits = model.head(model.features(codes.masked_fill(rounds >= number, -1), labels)[now.flatten(1)])
        nats[now] = F.cross_entropy(logits.float(), codes[now], reduction="none")
    return nats.flatten(1).sum(1)

"""Priors over grids of codes with attention: PixelSNAIL and a decoder-only transformer; and the table of all priors.

Attention over a grid must not see the future: in raster order a position may use the codes before it and nothing else,
or training learns to copy the answer and samples are useless. Both models here are strictly causal, and tests check
every position. All heads share one set of keys and values [4]: a small loss in likelihood, and the sampler reads only
a fraction of the memory.

Papers, cited by number in the code:
[1] Chen et al., PixelSNAIL: An Improved Autoregressive Generative Model, 2017, arXiv:1712.09763
[2] Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762
[3] Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2: norms before, small weights)
[4] Shazeer, Fast Transformer Decoding: One Write-Head is All You Need, 2019, arXiv:1911.02150
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules import CoarseCodes, PixelCNN, PixelCNNConfig

FREQUENCIES = 8  # of the sines of a position's row and column


def fourier(height: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of every position's row and column ([2], section 3.5), in raster order.

    Returns (height * width, 4 * FREQUENCIES) in [-1, 1]. They depend on row and column alone, not on the grid's size.
    """
    rates = 1000 ** (-torch.arange(FREQUENCIES, device=device) / FREQUENCIES)
    rows, columns = (torch.arange(side, device=device)[:, None] * rates for side in (height, width))
    angles = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], 2).flatten(0, 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def attend(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attention of position i of query (B, N, C) to positions 0 to i of keys, values (B, N, C / heads): (B, N, C)."""
    query = query.unflatten(2, (heads, -1)).transpose(1, 2)
    keys, values = (part[:, None].expand(-1, heads, -1, -1) for part in (keys, values))
    return F.scaled_dot_product_attention(query, keys, values, is_causal=True).transpose(1, 2).flatten(2)


def check_heads(hidden: int, heads: int) -> None:
    """ValueError unless the channels can be split evenly among the heads."""
    if hidden % heads:
        raise ValueError(f"heads must divide hidden, and {heads} does not divide {hidden}")


# ---------------------------------------------------------------------------------------------------------
# PixelSNAIL


class CausalAttention(nn.Module):
    """Attention of every position to the positions strictly before it ([1], section 2.2).

    Queries use features of earlier codes. Keys and values also hold the current code, so they are shifted by one
    position: the first ones are zero, and position i sees those of 0 to i - 1.
    """

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden)
        self.place = nn.Linear(4 * FREQUENCIES, hidden)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key_value = nn.Linear(2 * hidden, 2 * hidden // heads, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """h, embedded: (B, C, H, W), the features and the embedded codes. Returns (B, C, H, W), to be added to h."""
        height, width = h.shape[2:]
        x = self.norm(h.permute(0, 2, 3, 1).flatten(1, 2)) + self.place(fourier(height, width, h.device))
        context = torch.cat([x, embedded.permute(0, 2, 3, 1).flatten(1, 2)], 2)
        keys, values = F.pad(self.key_value(context)[:, :-1], (0, 0, 1, 0)).chunk(2, 2)
        answer = attend(self.query(x), keys, values, self.heads)
        return self.out(answer).unflatten(1, (height, width)).permute(0, 3, 1, 2)


@dataclass
class PixelSNAILConfig(PixelCNNConfig):
    """The sizes of a PixelSNAIL: those of a PixelCNN and of the attention."""

    heads: int             # they share the `hidden` channels
    attention_every: int   # gated layers between one attention and the next

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden, self.heads)


class PixelSNAIL(PixelCNN):
    """A gated PixelCNN with causal self-attention after every `attention_every` layers, in the manner of [1].

    The convolutions see what is near, the attention all that came before. Inputs and outputs are those of PixelCNN.
    """

    def __init__(self, config: PixelSNAILConfig):
        super().__init__(config)
        every, layers = config.attention_every, config.layers
        self.attention = nn.ModuleDict({str(i): CausalAttention(config.hidden, config.heads)
                                        for i in range(every - 1, layers, every)})

    def forward(self, codes: Tensor, labels: Tensor, coarse: Tensor | None = None) -> Tensor:
        v = h = embedded = self.embedding(codes).permute(0, 3, 1, 2)
        for i, (block, condition) in enumerate(zip(self.blocks, self.conditions(labels, coarse))):
            v, h = block(v, h, condition)
            if str(i) in self.attention:
                h = h + self.attention[str(i)](h, embedded)
        return self.head(h)


# ---------------------------------------------------------------------------------------------------------
# Transformer


class TransformerBlock(nn.Module):
    """Attention to this position and all before it, then an MLP for each position, with the norms first [3]."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.sizes = [hidden, hidden // heads, hidden // heads]
        self.norm_1 = nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, sum(self.sizes))
        self.out = nn.Linear(hidden, hidden)
        self.norm_2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.ReLU(), nn.Linear(4 * hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C). Returns (B, N, C)."""
        attended = attend(*self.query_key_value(self.norm_1(x)).split(self.sizes, 2), self.heads)
        x = x + F.dropout(self.out(attended), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm_2(x)), self.dropout, self.training)


@dataclass
class TransformerConfig:
    """The sizes of a transformer, from which a checkpoint rebuilds it. ValueError where they make no network."""

    num_codes: int     # K
    num_classes: int   # 0: there are no classes
    hidden: int        # channels
    layers: int        # blocks
    heads: int         # they share the `hidden` channels
    dropout: float = 0.0  # share of the inputs and of every residual that a training step sets to 0
    coarse_codes: int = 0  # K of the coarse grid that is given; 0: there is none

    def __post_init__(self) -> None:
        check_heads(self.hidden, self.heads)


class Transformer(nn.Module):
    """A decoder-only transformer [2, 3] over the codes in raster order, for grids of any height and width.

    The sequence begins with a token for the class and is shifted by one position: the input at position i is code
    i - 1, with an embedding of the row and the column of i. So position i sees the class and the codes before it.
    Class `num_classes` means "no class", as in PixelCNN. With `coarse_codes`, features of a coarse grid are one more
    term of the input: those at position i, whose code is to be predicted, as with the row and the column.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        hidden, layers, heads = config.hidden, config.layers, config.heads
        self.num_classes = config.num_classes
        self.embedding = nn.Embedding(config.num_codes, hidden)
        self.condition = nn.Embedding(config.num_classes + 1, hidden)
        self.place = nn.Linear(4 * FREQUENCIES, hidden)
        self.blocks = nn.ModuleList(TransformerBlock(hidden, heads, config.dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, config.num_codes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and module is not self.place:
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:  # so that the sum of all residuals is as large as with one layer [3]
            for layer in (block.out, block.mlp[2]):
                nn.init.normal_(layer.weight, std=0.02 / (2 * layers) ** 0.5)
        self.coarse = CoarseCodes(config.coarse_codes, hidden) if config.coarse_codes else None

    def forward(self, codes: Tensor, labels: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Logits of every code given the codes before it, with inputs and outputs as those of PixelCNN."""
        height, width = codes.shape[1:]
        before = torch.cat([self.condition(labels)[:, None], self.embedding(codes.flatten(1)[:, :-1])], 1)
        x = before + self.place(fourier(height, width, codes.device))
        if self.coarse:
            x = x + self.coarse(coarse).flatten(2).transpose(1, 2)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2).unflatten(2, (height, width))


# Network and sizes of each prior, by the name that PRIOR and the checkpoint's file give it
PRIORS = {"pixelcnn": (PixelCNN, PixelCNNConfig), "pixelsnail": (PixelSNAIL, PixelSNAILConfig),
          "transformer": (Transformer, TransformerConfig)}

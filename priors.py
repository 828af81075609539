"""Priors over grids of codes with attention: PixelSNAIL and a decoder-only transformer; and the table of all priors.

Attention over a grid must not see the future: in raster order a position may use the codes before it and nothing else,
or training learns to copy the answer and samples are useless. Both models here are strictly causal, and tests check
every position.

Papers, cited by number in the code:
[1] Chen et al., PixelSNAIL: An Improved Autoregressive Generative Model, 2017, arXiv:1712.09763
[2] Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762
[3] Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2: the norms come first)
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention import FREQUENCIES, TransformerBlock, attend, check_heads, fourier
from masked import Masked, MaskedConfig
from modules import CausalConv2d, CoarseCodes, PixelCNN, PixelCNNConfig, check_kernel_size

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
        answer = attend(self.query(x), keys, values, self.heads, causal=True)
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


@dataclass
class TransformerConfig:
    """The sizes of a transformer, from which a checkpoint rebuilds it. ValueError where they make no network."""

    num_codes: int     # K
    num_classes: int   # 0: there are no classes
    hidden: int        # channels
    layers: int        # blocks
    kernel_size: int   # of the masked convolutions at its start, odd
    heads: int         # they share the `hidden` channels
    dropout: float = 0.0  # share of the inputs and of every residual that a training step sets to 0
    coarse_codes: int = 0  # K of the coarse grid that is given; 0: there is none

    def __post_init__(self) -> None:
        check_kernel_size(self.kernel_size)
        check_heads(self.hidden, self.heads)


class Transformer(nn.Module):
    """A decoder-only transformer [2, 3] over the codes in raster order, for grids of any height and width.

    It starts from masked convolutions, as a PixelCNN does: the input at a position is made of the codes above it, of
    those just before it, of its row and column, and of the class. So the nearest codes are at hand from the first layer
    on, and attention sees all earlier ones. Class `num_classes` means "no class", as in PixelCNN. With
    `coarse_codes`, features of a coarse grid at the position are one more term of its input.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        hidden, layers, heads, kernel_size = config.hidden, config.layers, config.heads, config.kernel_size
        self.num_classes = config.num_classes
        self.embedding = nn.Embedding(config.num_codes, hidden)
        self.above = CausalConv2d(hidden, hidden, kernel_size, "vertical", "A")
        self.before = CausalConv2d(hidden, hidden, kernel_size, "horizontal", "A")
        self.condition = nn.Embedding(config.num_classes + 1, hidden)
        self.place = nn.Linear(4 * FREQUENCIES, hidden)
        self.blocks = nn.ModuleList(TransformerBlock(hidden, heads, config.dropout, causal=True)
                                    for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, config.num_codes)
        nn.init.normal_(self.embedding.weight, std=0.5)
        for weight in (self.condition.weight, self.head.weight):
            nn.init.normal_(weight, std=0.02)
        self.coarse = CoarseCodes(config.coarse_codes, hidden) if config.coarse_codes else None

    def forward(self, codes: Tensor, labels: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Logits of every code given the codes before it, with inputs and outputs as those of PixelCNN."""
        height, width = codes.shape[1:]
        embedded = self.embedding(codes).permute(0, 3, 1, 2)
        # raster order runs on from row to row: so the end of a row is seen from the start of the next one on
        before = self.before(embedded.flatten(2).unsqueeze(2)).squeeze(2)
        near = (self.above(embedded).flatten(2) + before).transpose(1, 2)
        x = near + self.condition(labels)[:, None] + self.place(fourier(height, width, codes.device))
        if self.coarse:
            x = x + self.coarse(coarse).flatten(2).transpose(1, 2)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2).unflatten(2, (height, width))


# Network and sizes of each prior, by the name that PRIOR and the checkpoint's file give it
PRIORS = {"pixelcnn": (PixelCNN, PixelCNNConfig), "pixelsnail": (PixelSNAIL, PixelSNAILConfig),
          "transformer": (Transformer, TransformerConfig), "masked": (Masked, MaskedConfig)}

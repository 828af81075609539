"""A decoder-only transformer over grids of codes.

Attention over a grid must not see the future: in raster order a position may use the codes before it and nothing else,
or training learns to copy the answer and samples are useless. Tests check every position.

Papers, cited by number in the code:
[1] Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762
[2] Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2: the norms come first)
"""
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from modules import CausalConv2d, check_kernel_size
from priors.attention import FREQUENCIES, TransformerBlock, check_heads, fourier


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

    def __post_init__(self) -> None:
        check_kernel_size(self.kernel_size)
        check_heads(self.hidden, self.heads)


class Transformer(nn.Module):
    """A decoder-only transformer [1, 2] over the codes in raster order, for grids of any height and width.

    It starts from masked convolutions, as a PixelCNN does: the input at a position is made of the codes above it, of
    those just before it, of its row and column, and of the class. So the nearest codes are at hand from the first layer
    on, and attention sees all earlier ones. Class `num_classes` means "no class", as in PixelCNN.
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

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Logits of every code given the codes before it, with inputs and outputs as those of PixelCNN."""
        height, width = codes.shape[1:]
        embedded = self.embedding(codes).permute(0, 3, 1, 2)
        # raster order runs on from row to row: so the end of a row is seen from the start of the next one on
        before = self.before(embedded.flatten(2).unsqueeze(2)).squeeze(2)
        near = (self.above(embedded).flatten(2) + before).transpose(1, 2)
        x = near + self.condition(labels)[:, None] + self.place(fourier(height, width, codes.device))
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2).unflatten(2, (height, width))

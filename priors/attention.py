"""What the priors with attention share: position encodings, attention, and the block of a transformer.

All heads share one set of keys and values [2]: a small loss in likelihood, and the sampler reads only a fraction of the
memory.

Papers, cited by number in the code:
[1] Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762
[2] Shazeer, Fast Transformer Decoding: One Write-Head is All You Need, 2019, arXiv:1911.02150
[3] Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2: the norms come first)
[4] Henry et al., Query-Key Normalization for Transformers, 2020, arXiv:2010.04245
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCIES = 8  # of the sines of a position's row and column


def fourier(height: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of every position's row and column ([1], section 3.5), in raster order.

    Returns (height * width, 4 * FREQUENCIES) in [-1, 1]. They depend on row and column alone, not on the grid's size.
    """
    rates = 1000 ** (-torch.arange(FREQUENCIES, device=device) / FREQUENCIES)
    rows, columns = (torch.arange(side, device=device)[:, None] * rates for side in (height, width))
    angles = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], 2).flatten(0, 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def check_heads(hidden: int, heads: int) -> None:
    """ValueError unless the channels can be split evenly among the heads."""
    if hidden % heads:
        raise ValueError(f"heads must divide hidden, and {heads} does not divide {hidden}")


def attend(query: Tensor, keys: Tensor, values: Tensor, heads: int, causal: bool) -> Tensor:
    """Attention of every position of query (B, N, C) to all of keys, values (B, N, C / heads), or causal: of position i
    to positions 0 to i. Returns (B, N, C).
    """
    query = query.unflatten(2, (heads, -1)).transpose(1, 2)
    keys, values = (part[:, None].expand(-1, heads, -1, -1) for part in (keys, values))
    return F.scaled_dot_product_attention(query, keys, values, is_causal=causal).transpose(1, 2).flatten(2)


class TransformerBlock(nn.Module):
    """Attention, then an MLP for each position, with the norms first [3].

    Queries and keys have length 1, but for a factor that each head learns [4]. A new block changes nothing: the last
    matrices of both parts are zero.
    """

    def __init__(self, hidden: int, heads: int, dropout: float, causal: bool):
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.sizes = [hidden, hidden // heads, hidden // heads]
        self.norm_1 = nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, sum(self.sizes))
        self.sharpness = nn.Parameter(torch.ones(heads, 1))
        self.out = nn.Linear(hidden, hidden)
        self.norm_2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.ReLU(), nn.Linear(4 * hidden, hidden))
        for layer in (self.out, self.mlp[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def split(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (..., C), key and value (..., C / heads) from what `query_key_value` returns (..., C + 2 C / heads)."""
        query, key, value = features.split(self.sizes, -1)
        # attention divides by the root of the head's channels: what is left of the factor here is that root
        query = F.normalize(query.unflatten(-1, (self.heads, -1)), dim=-1) * (self.sharpness * self.sizes[1])
        return query.flatten(-2), F.normalize(key, dim=-1), value

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C). Returns (B, N, C)."""
        attended = attend(*self.split(self.query_key_value(self.norm_1(x))), self.heads, self.causal)
        x = x + F.dropout(self.out(attended), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm_2(x)), self.dropout, self.training)

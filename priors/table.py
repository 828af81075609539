"""The table of priors: the network of each, its sizes, how it learns, and what a run makes of it before its first step.

A prior in raster order minimises the negative log-likelihood of grids. A masked prior sees both sides of a code, so it
has no exact likelihood: its loss and metrics have names of their own.
"""
import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules import PixelCNN, PixelCNNConfig
from priors import masked
from priors.codes import cross_entropy
from priors.masked import Masked, MaskedConfig
from priors.transformer import Transformer, TransformerConfig
from training.loop import means
from training.optimizers import AdamW, Muon

BETAS = (0.9, 0.99)  # of Adam


class Objective(NamedTuple):
    """What a prior minimises, and what is told of it."""

    loss: str                     # the term that is minimised; on the validation split it chooses the best weights
    line: str                     # what is said of a split's metrics, a format string
    panels: dict[str, list[str]]  # the curves, by title
    terms: Callable[..., dict[str, Tensor]]  # of a step or a part of a split: model, codes (B, H, W), labels (B,), more
    summarise: Callable[[dict[str, Tensor], int], dict[str, float]]  # a split's metrics; int: codes of an image
    hidden: Callable[..., list[Tensor]] = lambda *_, **__: []  # more that `terms` takes, see `masked.hidden`
    by_image: bool = True         # whether the bits told are of an image, or of one code


class Prior(NamedTuple):
    """A row of the table."""

    network: Callable[[Any], nn.Module]  # from its sizes
    config: type                         # the dataclass of these, whose fields are constants of train_pixelcnn.py
    objective: Objective
    attention: bool = True               # then Muon trains it, and the default sizes are those of a transformer


def nll_terms(model: nn.Module, codes: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The negative log-likelihood of codes (B, H, W) in nats per code."""
    return {"nll": cross_entropy(model(codes.long(), labels).float(), codes.long())}


def summarise_nll(totals: dict[str, Tensor], positions: int) -> dict[str, float]:
    """A split's negative log-likelihood in nats per code, and in bits per image of `positions` codes."""
    nll = means(totals)["nll"]
    return {"nll": nll, "bits_per_image": nll * positions / math.log(2)}


LIKELIHOOD = Objective(
    "nll", "nll {nll:.4f} nats per code, {bits_per_image:.1f} bits per image",
    {"negative log-likelihood (nats per code)": ["train_nll", "validation_nll"],
     "bits per image": ["train_bits_per_image", "validation_bits_per_image"]}, nll_terms, summarise_nll)
BOTH_SIDES = Objective(
    "hidden_nll", "hidden codes given the rest {hidden_nll:.4f} nats, {bits_per_hidden_code:.3f} bits each",
    {"hidden codes given the rest (nats per hidden code)": ["train_hidden_nll", "validation_hidden_nll"]},
    masked.terms, masked.summarise, masked.hidden, by_image=False)

# by the name that PRIOR and the checkpoint's file give it
PRIORS = {"pixelcnn": Prior(PixelCNN, PixelCNNConfig, LIKELIHOOD, attention=False),
          "transformer": Prior(Transformer, TransformerConfig, LIKELIHOOD),
          "masked": Prior(Masked, MaskedConfig, BOTH_SIDES)}


def last_layer(model: nn.Module) -> nn.Module:
    """The layer of a prior that makes the logits."""
    return [module for module in model.head.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]


@torch.no_grad()
def start_from_codebook(model: nn.Module, codebook: Tensor) -> None:
    """Start the embeddings of the codes, and the weights of their logits, as random projections of the codebook (K, D):
    codes that decode to similar patches are then similar to the prior. The scale of the weights stays.
    """
    centred = (codebook - codebook.mean(0)).cpu()
    for weight in (model.embedding.weight[:len(codebook)], last_layer(model).weight):  # a masked prior embeds one more
        projected = centred @ torch.randn(centred.shape[1], weight.shape[1])
        weight.copy_((projected * (weight.std() / projected.std().clamp_min(1e-6))).view_as(weight))


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimiser of a prior; under Muon, Adam has the embeddings and the layer that makes logits."""
    if args.OPTIMIZER == "adam":
        return AdamW(model.parameters(), args.LEARNING_RATE, BETAS, args.WEIGHT_DECAY)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return Muon(model.parameters(), args.LEARNING_RATE, betas=BETAS, weight_decay=args.WEIGHT_DECAY,
                adam=[*tables, last_layer(model).weight])

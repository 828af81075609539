"""A small classifier of images, in whose features evaluate.py and ablation.py compare sets of images."""
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import dataset
from dataset import Data

BATCH_SIZE = 128
LEARNING_RATE = 2e-3  # of AdamW at the peak of its schedule
WEIGHT_DECAY = 0.01
SHIFT = 14            # training images are shifted by up to a 14th of their size: 2 pixels of 28


@dataclass
class ClassifierConfig:
    """The sizes of a classifier, from which a checkpoint rebuilds it."""

    channels: int      # of the images, as height and width
    height: int
    width: int
    num_classes: int
    hidden: int = 128  # features


class Classifier(nn.Module):
    """A small convolutional network that names the class of images of one size.

    Convolutions of stride 2 until both sides are at most 8, then a hidden layer, whose output is the features.
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        height, width = config.height, config.width
        layers, wide = [], config.channels
        while max(height, width) > 8 or not layers:
            narrow = 64 if layers else 32
            layers += [nn.Conv2d(wide, narrow, 5, stride=2, padding=2), nn.BatchNorm2d(narrow), nn.ReLU()]
            wide, height, width = narrow, -(-height // 2), -(-width // 2)
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(wide * height * width, config.hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(config.hidden, config.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, num_classes)."""
        return self.head(self.features(images))


@torch.enable_grad()
def train_classifier(data: Data, epochs: int, device: torch.device) -> Classifier:
    """A classifier trained on the training split, in eval mode. It does not depend on SEED, so that runs compare."""
    torch.manual_seed(0)
    images, labels = data.train
    model = Classifier(ClassifierConfig(*images.shape[1:], len(data.class_names))).to(device)
    steps = epochs * math.ceil(len(images) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    order = [part for _ in range(epochs) for part in torch.randperm(len(images)).tensor_split(steps // epochs)]
    split = data.train.to(device)
    for batch, target in tqdm(dataset.batches(order, device, *split), desc="training the classifier", total=steps,
                              leave=False, disable=None):
        loss = F.cross_entropy(model(_shifted(dataset.to_float(batch))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _shifted(images: Tensor) -> Tensor:
    """A batch (B, C, H, W) shifted by a random amount, its edges repeated."""
    height, width = images.shape[2:]
    y, x = height // SHIFT, width // SHIFT
    top, left = (int(torch.randint(2 * most + 1, ())) for most in (y, x))
    return F.pad(images, (x, x, y, y), mode="replicate")[:, :, top:top + height, left:left + width]

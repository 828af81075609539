"""A small classifier of images, which learns the classes of the training images.

evaluate.py and ablation.py ask it whether a sample shows the class that was asked for.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from dataset import Data
from running.progress import Bar

BATCH_SIZE = 128
LEARNING_RATE = 2e-3  # of AdamW at the peak of its schedule
WEIGHT_DECAY = 0.01
SHIFT = 14            # training images are shifted by up to a 14th of their size: 2 pixels of 28
LARGEST = 96          # pixels a side up to which images are taken as they are: larger ones are reduced first
LEAST_STEPS = 440     # a CLASSIFIER_EPOCHS of "auto" makes at least so many steps of BATCH_SIZE images ...
LEAST_EPOCHS = 3      # ... and so many passes


@dataclass
class ClassifierConfig:
    """The sizes of a classifier, from which a checkpoint rebuilds it."""

    channels: int      # of the images, as height and width
    height: int
    width: int
    num_classes: int
    hidden: int = 128  # features
    reduce: int = 1    # pixels a side of the squares that images are averaged over first


class Classifier(nn.Module):
    """A small convolutional network that names the class of images of one size.

    Large images are reduced; then convolutions of stride 2 until both sides are at most 8, and a hidden layer, whose
    output is the features.
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        height, width = config.height, config.width
        layers, wide = [], config.channels
        if config.reduce > 1:
            layers.append(nn.AvgPool2d(config.reduce, ceil_mode=True))
            height, width = -(-height // config.reduce), -(-width // config.reduce)
        while max(height, width) > 8 or wide == config.channels:
            narrow = 32 if wide == config.channels else 64
            layers += [nn.Conv2d(wide, narrow, 5, stride=2, padding=2), nn.BatchNorm2d(narrow), nn.ReLU()]
            wide, height, width = narrow, -(-height // 2), -(-width // 2)
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(wide * height * width, config.hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(config.hidden, config.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, num_classes)."""
        return self.head(self.features(images))


def choose_epochs(count: int) -> int:
    """The passes over `count` training images where CLASSIFIER_EPOCHS is "auto"."""
    return dataset.auto_epochs(LEAST_EPOCHS, LEAST_STEPS, math.ceil(count / BATCH_SIZE))


@torch.enable_grad()
def train_classifier(data: Data, epochs: int, device: torch.device) -> Classifier:
    """A classifier of the classes, trained on the training split, in eval mode.

    It does not depend on SEED, so that runs compare.
    """
    images, count = data.train.images, len(data.train.images)
    torch.manual_seed(0)
    config = ClassifierConfig(*images.shape[1:], len(data.class_names), reduce=reduction(images))
    model, steps = Classifier(config).to(device), math.ceil(count / BATCH_SIZE)
    order = [part for _ in range(epochs) for part in torch.randperm(count).tensor_split(steps)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(order))
    for batch, labels in Bar(dataset.batches(order, device, *data.train.to(device)), desc="training the classifier",
                              total=len(order)):
        loss = F.cross_entropy(model(shifted(dataset.to_float(batch))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def reduction(images: Tensor) -> int:
    """Pixels a side of the squares over which a classifier averages images (N, C, H, W) first."""
    return math.ceil(max(images.shape[2:]) / LARGEST)


def shifted(images: Tensor) -> Tensor:
    """A batch (B, C, H, W) shifted by a random amount, its edges repeated."""
    height, width = images.shape[2:]
    y, x = height // SHIFT, width // SHIFT
    top, left = (int(torch.randint(2 * most + 1, ())) for most in (y, x))
    return F.pad(images, (x, x, y, y), mode="replicate")[:, :, top:top + height, left:left + width]

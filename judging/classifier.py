"""A small classifier of images, in whose features evaluate.py and ablation.py compare sets of images.

It learns the classes of the training images, or, without classes, what was done to an image: how it was turned [1],
and how it was damaged. To see a turn it needs the shape of the whole; to see damage, its detail.

Papers, cited by number in the code:
[1] Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations, 2018, arXiv:1803.07728
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from dataset import Data, Split
from running.progress import Bar

BATCH_SIZE = 128
LEARNING_RATE = 2e-3  # of AdamW at the peak of its schedule
WEIGHT_DECAY = 0.01
SHIFT = 14            # training images are shifted by up to a 14th of their size: 2 pixels of 28
LARGEST = 96          # pixels a side up to which images are taken as they are: larger ones are reduced first
LEAST_STEPS = 440     # a CLASSIFIER_EPOCHS of "auto" makes at least so many steps of BATCH_SIZE images ...
LEAST_EPOCHS = 3      # ... and so many passes
# Without classes:
STEPS = 200           # of BATCH_SIZE images, however many images there are
BLUR = 1.0, 4.0       # the least and the greatest standard deviation, in pixels of the reduced image
NOISE = 0.05, 0.3     # the same, in units of the range of pixels
TILES = 2, 4, 8       # a side, in which an image is mixed with another
MIXED = 0.05, 0.5     # the least and the greatest share of tiles that are the other's
SELF_VERSION = 2      # change it with anything that changes training without classes: it names the cache


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


def train_classifier(data: Data, epochs: int, device: torch.device) -> Classifier:
    """A classifier of the classes, trained on the training split, in eval mode."""
    count = len(data.train.images)
    model = _new(data.train.images, len(data.class_names), device)
    steps = math.ceil(count / BATCH_SIZE)
    order = [part for _ in range(epochs) for part in torch.randperm(count).tensor_split(steps)]
    return _train(model, data.train, order, lambda images, labels: (_shifted(images), labels))


def train_self(images: Tensor, device: torch.device) -> Classifier:
    """A classifier that learns from uint8 images (N, C, H, W) alone what `_altered` did to an image, in eval mode."""
    model = _new(images, len(DAMAGES) * _turns(images), device)
    reduce = model.config.reduce
    # each image once before any comes again
    rounds = [torch.randperm(len(images)) for _ in range(math.ceil(STEPS * BATCH_SIZE / len(images)))]
    order = torch.cat(rounds)[:STEPS * BATCH_SIZE].split(BATCH_SIZE)
    return _train(model, Split(images, torch.zeros(len(images), dtype=torch.int64)), order,
                  lambda images, _: _altered(_shifted(images), reduce))


def _new(images: Tensor, num_classes: int, device: torch.device) -> Classifier:
    """An untrained classifier of such images (N, C, H, W). It does not depend on SEED, so that runs compare."""
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(*images.shape[1:], num_classes, reduce=reduction(images))).to(device)


def reduction(images: Tensor) -> int:
    """Pixels a side of the squares over which a classifier averages images (N, C, H, W) first."""
    return math.ceil(max(images.shape[2:]) / LARGEST)


@torch.enable_grad()
def _train(model: Classifier, split: Split, order: Sequence[Tensor],
           task: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Classifier:
    """Train a model, one step for each tensor of indices in `order`.

    task: from a batch of images (B, C, H, W) in [0, 1] and their labels (B,) to the images that the model sees, and the
    classes that it shall name.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(order))
    for batch, labels in Bar(dataset.batches(order, device, *split.to(device)), desc="training the classifier",
                              total=len(order)):
        images, classes = task(dataset.to_float(batch), labels)
        loss = F.cross_entropy(model(images), classes)
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


def _altered(images: Tensor, reduce: int = 1) -> tuple[Tensor, Tensor]:
    """A batch (B, C, H, W), each image damaged and turned, and (B,) in which of the ways: turn + turns * damage.

    reduce: of the classifier; damage is that much stronger, so that as much is left of it after the reduction.
    """
    turns, parts = _turns(images), images.tensor_split(len(DAMAGES))
    damaged = torch.cat([damage(part, reduce) for damage, part in zip(DAMAGES, parts)])
    damage = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    turn = torch.arange(len(images)) % turns
    turned = torch.empty_like(damaged)
    for number in range(turns):
        turned[number::turns] = torch.rot90(damaged[number::turns], 4 // turns * number, (2, 3))
    return turned, (turn + turns * damage).to(images.device)


def _turns(images: Tensor) -> int:
    """In how many ways images (N, C, H, W) can be turned: by quarters, or by halves if they are not square."""
    return 4 if images.shape[2] == images.shape[3] else 2


def _blurred(images: Tensor, reduce: int) -> Tensor:
    """Images (B, C, H, W) under a Gaussian, of a random width for either half of the batch; edges are repeated."""
    return torch.cat([blur(half, reduce * _between(*BLUR)) for half in images.tensor_split(2)])


def blur(images: Tensor, deviation: float) -> Tensor:
    """Images (B, C, H, W) under a Gaussian of this standard deviation in pixels; edges are repeated."""
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-torch.arange(-reach, reach + 1, device=images.device).square() / (2 * deviation**2))
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    images = F.conv2d(F.pad(images, (reach, reach, 0, 0), mode="replicate"), weights, groups=images.shape[1])
    return F.conv2d(F.pad(images, (0, 0, reach, reach), mode="replicate"), weights.mT, groups=images.shape[1])


def _noisy(images: Tensor, reduce: int) -> Tensor:
    """Images with Gaussian noise of a random strength."""
    return images + reduce * _between(*NOISE) * torch.randn_like(images)


def _mixed(images: Tensor, _: int = 1) -> Tensor:
    """Images (B, C, H, W) of which a random share of the tiles shows another image of the batch, at the same place."""
    side = TILES[int(torch.randint(len(TILES), ()))]
    other = torch.rand(len(images), 1, side, side, device=images.device).lt(_between(*MIXED)).float()
    return torch.where(F.interpolate(other, images.shape[2:]) > 0, images.roll(1, 0), images)


def _between(low: float, high: float) -> float:
    """A random number, even in its logarithm."""
    return low * (high / low) ** torch.rand(()).item()


DAMAGES = (lambda images, _: images), _blurred, _noisy, _mixed

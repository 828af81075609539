"""What evaluate.py and ablation.py measure: how far sets of images are from the test split, and codes from a prior.

A set of images is a function from indices (B,) to images (B, C, H, W) in [0, 1], so that no set is ever held whole.

Papers, cited by number in the code:
[1] Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017,
    arXiv:1706.08500 (the Frechet distance between Gaussians fitted to features)
[2] Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019, arXiv:1904.06991
[3] Salimans et al., Improved Techniques for Training GANs, 2016, arXiv:1606.03498 (the Inception score)
"""
import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import checkpoint
import dataset
import figures
import folder
from classifier import Classifier, train_classifier
from cli import UserError
from codes import encode, marginals
from dataset import Data
from decode import Reading
from files import alone, atomic
from sampler import make_sampler, uniforms

Images = Callable[[Tensor], Tensor]

FEWEST = 8            # images of a set from which distances are told
NEIGHBOURS = 3        # k in [2]
SSIM_IMAGES = 1000    # test images of which SSIM, which is slow, is the mean
COMPARED = 1000       # images of a set, at most, whose nearest training image is looked for
SHOWN = 20            # images of a set in a figure
CHUNK = 2**25         # entries of a matrix held at a time


# ---------------------------------------------------------------------------------------------------------
# Distances between sets of features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features a (N, F) and b (M, F) ([1], eq. 6).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for the covariances A and B.
    """
    a, b = a.cpu().double(), b.cpu().double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    # A B has the eigenvalues of A^(1/2) B A^(1/2), which is symmetric
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(0.0, distance.item())


def precision_recall(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Precision and recall of features fake (M, F) against real (N, F) ([2], eq. 1 and 2).

    The share of fake points that lie on the real manifold, and of real ones that lie on the fake manifold; a manifold
    is the balls around its points that reach to their k-th nearest neighbour.
    """
    real_radii, fake_radii = _radii(real), _radii(fake)
    on_real, on_fake = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part, radii in zip(*(rows.split(max(1, CHUNK // len(real))) for rows in (fake, fake_radii))):
        distances = torch.cdist(part, real)
        on_real.append((distances <= real_radii).any(1))
        on_fake |= (distances <= radii[:, None]).any(0)
    return torch.cat(on_real).float().mean().item(), on_fake.float().mean().item()


def _radii(points: Tensor) -> Tensor:
    """(N,) the distance of every point (N, F) to its k-th nearest neighbour, itself not counted."""
    parts = points.split(max(1, CHUNK // len(points)))
    return torch.cat([torch.cdist(part, points).topk(NEIGHBOURS + 1, largest=False).values[:, -1] for part in parts])


class Inception:
    """FID [1] and Inception score [3] as torchmetrics computes them, in the features of an Inception network trained
    on ImageNet. torchmetrics downloads its weights; UserError if it, or they, are not to be had.
    """

    def __init__(self, device: torch.device):
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
            from torchmetrics.image.inception import InceptionScore
            self.fid, self.score = FrechetInceptionDistance(reset_real_features=False), InceptionScore()
        except ImportError:
            raise UserError("INCEPTION (--inception) needs torchmetrics and torch-fidelity: "
                            "`pip install torchmetrics[image]`") from None
        except (OSError, RuntimeError) as error:
            raise UserError(f"INCEPTION (--inception): the Inception network cannot be had, or not its weights "
                            f"({' '.join(str(error).split())[:200]})") from None
        self.device = device if device.type == "cuda" else torch.device("cpu")  # MPS lacks the float64 it computes in
        self.fid.to(self.device)
        self.score.to(self.device)

    def add_real(self, images: Images, batches: Iterable[Tensor]) -> None:
        """Take in images of the real side; they are kept for every row."""
        for index in batches:
            self.fid.update(self._pixels(images(index)), real=True)

    def measure(self, images: Images, batches: Iterable[Tensor]) -> dict[str, float]:
        """FID against the real side so far, and the Inception score."""
        for index in tqdm(batches, desc="inception", leave=False, disable=None):
            pixels = self._pixels(images(index))
            self.fid.update(pixels, real=False)
            self.score.update(pixels)
        result = {"fid": self.fid.compute().item(), "inception_score": self.score.compute()[0].item()}
        self.fid.reset()
        self.score.reset()
        return result

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = images.clamp(0, 1).mul(255).round().byte().to(self.device)
        return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


# ---------------------------------------------------------------------------------------------------------
# A run under measurement

COLUMNS = {"bits_per_image": ("bits/image", ".1f"), "mse": ("MSE", ".5f"), "psnr": ("PSNR", ".2f"),
           "ssim": ("SSIM", ".4f"), "frechet": ("Frechet", ".2f"), "precision": ("precision", ".3f"),
           "recall": ("recall", ".3f"), "class_accuracy": ("class", ".1%"), "distinct": ("distinct", ".1%"),
           "nearest": ("nearest", ".2f"), "fid": ("FID", ".2f"), "inception_score": ("IS", ".2f")}
TOLD = ("bits_per_image", "frechet", "class_accuracy", "distinct")  # those of them that stand in a figure


class Row(NamedTuple):
    """A row of a table and of a figure: a set of images and what was measured of it, by the names in COLUMNS."""

    images: Images
    measures: dict[str, float]


def load_classifier(output_dir: str, stored: dict, data: Data, epochs: int, device: torch.device) -> Classifier:
    """The classifier of a run's images, in eval mode: `classifier.pt` if it was trained on these images and labels for
    as many epochs, or else a new one, which is put there. stored: the VQ-VAE's checkpoint.
    """
    basis = {"images": dataset.digest(data.train), "epochs": epochs}
    path = checkpoint.path_of(output_dir, "classifier")
    with alone(path.with_name(".classifier.lock"), "trains the classifier"):
        if path.is_file():
            try:
                saved = checkpoint.load(output_dir, "classifier")
                if saved.get("basis") == basis:
                    return checkpoint.build(saved).to(device)
            except UserError:  # it is only a cache
                print("classifier.pt cannot be read: training it anew")
        model = train_classifier(data, epochs, device)
        checkpoint.save(output_dir, "classifier", model.config, model.state_dict(), data=stored["data"], basis=basis)
    return model


class Yardstick:
    """A run's VQ-VAE and its data, and what sets of images are held against: test images in a classifier's features.

    args: OUTPUT_DIR, DATASET, DATA_DIR, LIMIT, NUM_SAMPLES, CLASSIFIER_EPOCHS, INCEPTION, BATCH_SIZE and SEED of a
    script. every: load every prior of the run, or else PRIOR alone. A set has as many images as there are test images
    to hold it against, `count`: NUM_SAMPLES, or the whole test split if that is smaller. Image i of a set of samples is
    asked to be of the class of test image `chosen[i]`. Making a Yardstick trains the classifier if the run has none,
    and prints its accuracy.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device, every: bool = False):
        torch.set_float32_matmul_precision("highest")  # TF32 would blur the distances, which are small differences
        self.stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
        self.args, self.device = checkpoint.fill(args, self.stored), device
        self.vqvae = checkpoint.build(self.stored).to(device)
        found = checkpoint.load_priors(args.OUTPUT_DIR, self.stored) if every else \
            [checkpoint.load_prior(args.OUTPUT_DIR, self.stored, args.PRIOR)]
        self.priors = {prior["stage"]: network.to(device) for prior, network in found}
        self.inception = Inception(device) if args.INCEPTION else None
        self.data = dataset.load(self.args.DATASET, self.args.DATA_DIR, self.args.LIMIT,
                                 Reading(**self.stored["data"]["reading"]))
        train, _, test, class_names = self.data[:4]
        checkpoint.check_images(self.stored, test.images)
        for prior, _ in found:
            if prior["data"]["class_names"] != class_names:
                raise UserError(f"DATASET (--dataset): its classes are not those that {prior['stage']}.pt learnt")
        self.count = min(args.NUM_SAMPLES, len(test.images))
        if self.count < FEWEST:
            raise UserError(f"NUM_SAMPLES (--num-samples) of {args.NUM_SAMPLES} and a test split of {len(test.images)} "
                            f"images leave {self.count} to compare: at least {FEWEST} are needed")
        self.chosen = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(args.SEED))[:self.count]
        self.labels = test.labels[self.chosen]
        self.compared = min(self.count, COMPARED, max(SHOWN, CHUNK // test.images[0].numel()))
        self.classifier, self.accuracy = None, None
        if len(class_names) > 1:
            self.classifier = load_classifier(args.OUTPUT_DIR, self.stored, self.data, args.CLASSIFIER_EPOCHS, device)
            _, seen = self._features(lambda index: self.read(test.images, index), len(test.images))
            self.accuracy = (seen == test.labels).float().mean().item()
            print(f"classifier: names {self.accuracy:.2%} of the test images right", flush=True)
            self.real, _ = self._features(self.originals, self.count)
        elif not self.inception:
            print("the data set has no classes to train a classifier on: sets of images are compared by evaluate.py "
                  "--inception only")
        self.floor = self._floor()
        self.test_codes = encode(self.vqvae, test.images)
        self.independent = marginals(encode(self.vqvae, train.images), self.vqvae.config.num_codes)

    # ---- sets of images

    def read(self, images: Tensor, index: Tensor) -> Tensor:
        """Rows of uint8 images as floats on the device."""
        rows = dataset.to_float(images[index]).to(self.device)
        folder.release()
        return rows

    def originals(self, index: Tensor) -> Tensor:
        """The set of test images that all others are held against."""
        return self.read(self.data.test.images, self.chosen[index])

    def decoded(self, codes: Tensor) -> Images:
        """The set of images that codes (N, H, W) decode to."""
        size = self.stored["data"]["height"], self.stored["data"]["width"]
        return lambda index: self.vqvae.decode(codes[index].to(self.device).long(), *size)

    def draw(self, prior: str, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
        """Codes (count, H, W) drawn from a prior as generate.py draws them, each of its class in `labels`."""
        height, width = self.test_codes.shape[1:]
        parts = self.batches(self.count)
        sampler = make_sampler(self.priors[prior], len(parts[0]), width, temperature, top_k, top_p)
        drawn = []
        with tqdm(desc=f"sampling {prior}", total=self.count, unit="grid", leave=False, disable=None) as bar:
            for index in parts:
                chance = uniforms(self.args.SEED, int(index[0]), len(index), height, width)
                drawn.append(sampler(self.labels[index], chance).cpu())
                bar.update(len(index))
        return torch.cat(drawn)

    def batches(self, end: int, start: int = 0) -> tuple[Tensor, ...]:
        """The indices from start to end in batches."""
        return torch.arange(start, end).split(self.args.BATCH_SIZE)

    # ---- measures

    def measure(self, images: Images, asked: bool = False) -> dict[str, float]:
        """Frechet distance, precision and recall of a set against the test images; if a class was asked for, the share
        that the classifier takes for it. Nothing of it without a classifier.
        """
        result = {}
        if self.classifier:
            features, seen = self._features(images, self.count)
            result = _compare(self.real, features)
            if asked:
                result["class_accuracy"] = (seen == self.labels).float().mean().item()
        if self.inception:
            result |= self.inception.measure(images, self.batches(self.count))
        return result

    def _floor(self) -> dict[str, float]:
        """The measures of one half of the test images against the other: no set of samples should be expected to do
        better. Leaves all of them as the real side of `inception`.
        """
        half, result = self.count // 2, {}
        if self.classifier:
            result = _compare(self.real[:half], self.real[half:]) | {"class_accuracy": self.accuracy}
        if self.inception:
            self.inception.add_real(self.originals, self.batches(half))
            result |= self.inception.measure(self.originals, self.batches(self.count, half))
            self.inception.add_real(self.originals, self.batches(self.count, half))
        return result

    def _features(self, images: Images, count: int) -> tuple[Tensor, Tensor]:
        """The classifier's features (count, F), on the device, and the classes (count,) that it sees."""
        features, seen = [], []
        for index in tqdm(self.batches(count), desc="measuring", leave=False, disable=None):
            features.append(self.classifier.features(images(index)))
            seen.append(self.classifier.head(features[-1]).argmax(1).cpu())
        return torch.cat(features), torch.cat(seen)

    def nearest(self, images: Images) -> tuple[Tensor, Tensor]:
        """For the first `compared` images of a set, the distance to the nearest training image by pixels in [0, 1]
        (L2), and its index.
        """
        train = self.data.train.images
        compared = torch.cat([images(index).flatten(1) for index in self.batches(self.compared)])
        best = torch.full((len(compared),), torch.inf, device=self.device)
        where = torch.zeros(len(compared), dtype=torch.int64, device=self.device)
        indices = self.batches(len(train))
        for index, (part,) in zip(indices, dataset.batches(indices, self.device, train)):
            distance, row = torch.cdist(compared, dataset.to_float(part).flatten(1)).min(1)
            where = torch.where(distance < best, row + index[0].to(self.device), where)
            best = torch.minimum(best, distance)
        return best.cpu(), where.cpu()

    # ---- the report

    def shown(self) -> Tensor:
        """Indices of the images of a set to show: of each class in turn the first, then the second, ..."""
        labels = self.labels[:self.compared]
        members = F.one_hot(labels).cumsum(0)
        return (members.gather(1, labels[:, None])[:, 0] * members.shape[1] + labels).argsort()[:SHOWN]

    def report(self, rows: dict[str, Row], stem: str, title: str, **more: float) -> None:
        """Print rows as a table, and write them as `stem`.json, with what more there is to say, and `stem`.png."""
        print(table({name: row.measures for name, row in rows.items()}))
        output = Path(self.args.OUTPUT_DIR)
        content = {"images_per_row": self.count, "classifier_accuracy": self.accuracy, **more,
                   "constants": vars(self.args), "rows": {name: row.measures for name, row in rows.items()}}
        with atomic(output / f"{stem}.json") as file:
            file.write(json.dumps(content, indent=1).encode())
        strips, shown = {}, self.shown()
        for name, row in rows.items():
            told = [f"{COLUMNS[key][0]} {row.measures[key]:{COLUMNS[key][1]}}" for key in TOLD if key in row.measures]
            strips[f"{name}\n{', '.join(told)}"] = row.images(shown)
        figures.save_strips(strips, title, output / f"{stem}.png")
        print(f"wrote {output / stem}.json and {output / stem}.png")


def _compare(real: Tensor, fake: Tensor) -> dict[str, float]:
    precision, recall = precision_recall(real, fake)
    return {"frechet": frechet_distance(real, fake), "precision": precision, "recall": recall}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Rows as aligned text, with the columns that any of them has."""
    present = [name for name in COLUMNS if any(name in row for row in rows.values())]
    lines = [["", *(COLUMNS[name][0] for name in present)]]
    lines += [[title, *(format(row[name], COLUMNS[name][1]) if name in row else "-" for name in present)]
              for title, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)

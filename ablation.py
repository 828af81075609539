"""Replace the parts of generating one by one: is the prior needed, and what does sampling do?

Reads `vqvae.pt` and a prior, such as `transformer.pt`, from OUTPUT_DIR or PRETRAINED. Writes `ablation.json`, the
table, `ablation.png`, a strip of images of every row, and `report.html` anew. The rows, all decoded by the same VQ-VAE:
    the encoder's codes of the test images that every row is compared with, as an upper bound for any prior
    the prior sampled at several temperatures, and its likeliest code at every position (argmax)
    the prior sampled among the likeliest codes, by several TOP_P
    where it learnt classes: sampled with guidance of several strengths s
    of a masked prior: sampled by the defaults of generate.py in several numbers of rounds, with the time that it took
    independent codes: by their frequency at each position, by their frequency overall, uniform

The columns are those of evaluate.py, and `distinct`: the number of different grids of codes over the number of grids;
and `seconds`, wall time in which all grids of the row were drawn.
"""
import running.start  # noqa: F401

import argparse
import time
from functools import partial

import torch
from torch import Tensor

from judging.judge import load_judge, load_subject
from judging.metrics import Inception
from judging.page import write_page
from judging.report import Row, make_rows, write_report
from priors import runs
from priors.codes import distinct, draw_independent
from priors.draws import Draw
from running import devices
from running.cli import run as run_script

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and a prior, such as transformer.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
PRIOR = None              # the prior to draw from; None: the one there, or of several that of best validation loss
DATASET = None            # the images to measure with; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # use only the first N images of each part; 0: all; None: as in the training
NUM_SAMPLES = 2000        # images in every row; at most as many as the test split has
TEMPERATURES = "0.7 1.0 1.3"  # at which the prior is sampled: they divide the logits
TOP_PS = "0.9 0.95"       # TOP_P of further draws without guidance
GUIDANCES = "1.25 1.5 2 3"  # scales of classifier-free guidance to sample with; 1: none
STEPS = 16                # rounds in which a masked prior draws a grid; 0: one for each code, as other priors draw
STEP_COUNTS = "8 16 0"    # STEPS of the rows that compare them, of a masked prior
TOP_P = 1.0               # of the draws with guidance
FEATURES = "auto"         # of a network that learnt "imagenet", or the "classes"; "auto": imagenet if installed
CLASSIFIER_EPOCHS = "auto"  # of the classifier that learns the classes; "auto": 3, or more for 440 steps of 128
INCEPTION = False         # also FID and Inception score, through torchmetrics, which downloads a network's weights
SEED = 0                  # of the draws, and of the choice of test images where NUM_SAMPLES are fewer
BATCH_SIZE = 250          # images and grids at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    inception = Inception(device) if args.INCEPTION else None  # first, as it may fail
    subject = load_subject(args, device)
    judge = load_judge(subject, inception)
    [(prior, model)] = subject.priors.items()
    unguided = {f"{prior}, T = {t:g}" if t else f"{prior}, argmax": Draw(t, steps=args.STEPS)
                    for t in (*map(float, args.TEMPERATURES.split()), 0.0)}
    unguided |= {f"{prior}, top p {p:g}": Draw(top_p=p, steps=args.STEPS) for p in map(float, args.TOP_PS.split())}

    def decoded(codes: Tensor, asked: bool) -> Row:
        images = subject.decoded(codes)
        return Row(images, judge.measure(images, asked) | {"distinct": distinct(codes)})

    def drawn(how: Draw) -> Row:
        return decoded(subject.draw(prior, how), asked=model.num_classes > 0)

    def timed(how: Draw) -> Row:
        began = time.perf_counter()
        codes = subject.draw(prior, how)
        seconds = {"seconds": time.perf_counter() - began}
        row = decoded(codes, asked=model.num_classes > 0)
        return row._replace(measures=row.measures | seconds)

    def independent(probabilities: Tensor) -> Row:
        return decoded(draw_independent(probabilities, subject.count, args.SEED), asked=False)

    lacks = runs.lacks_for_guidance(subject.checkpoints[prior])
    guided = {f"{prior}, top p {args.TOP_P:g}, s = {s:g}": Draw(1.0, 0, args.TOP_P, s, args.STEPS)
              for s in map(float, args.GUIDANCES.split()) if model.num_classes and (s == 1 or not lacks)}
    if lacks and model.num_classes:
        print(f"no rows with guidance, it needs {lacks}")
    rounds = {f"{prior}, {steps or 'all'} rounds": Draw(top_p="auto", guidance="auto", steps=steps)
              for steps in map(int, args.STEP_COUNTS.split()) if prior == "masked"}
    plan = {
        "real images": lambda: Row(subject.originals, judge.baseline),
        "the encoder's codes": lambda: decoded(subject.test_codes[subject.chosen], asked=True),
        **{name: partial(drawn, how) for name, how in (unguided | guided).items()},
        **{name: partial(timed, how) for name, how in rounds.items()},
        **{name: partial(independent, probabilities) for name, probabilities in subject.independent.items()}}
    title = "Is the prior needed, and what does sampling do?"
    write_report(make_rows(plan), subject.shown, subject.args, "ablation", title, subject.independent,
                 images_per_row=subject.count, classifier_accuracy=judge.accuracy)
    print(f"wrote {write_page(args.OUTPUT_DIR, args.PRETRAINED)}")


if __name__ == "__main__":
    run_script(main, globals())

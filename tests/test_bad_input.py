"""Bad input, in one table: every row is a command, its exit status and a fragment of the one line that it prints."""
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from images import noise, write

import dataset
from judging.expected import VERSION
from modules import VQVAE, VQVAEConfig
from priors import sampler

SCRIPTS = ["train_vqvae", "train_pixelcnn", "train_decoder", "train_vae", "generate", "complete", "reconstruct",
           "random_sample", "evaluate", "ablation", "score"]


# ---- what can be wrong with a run's directory, a copy of that of the small finished run


def lacking(name: str):
    return lambda run, patch: (run / name).unlink()


def holding(name: str, data: bytes):
    return lambda run, patch: (run / name).write_bytes(data)


def cut(name: str, share: float):
    return lambda run, patch: (run / name).write_bytes((data := (run / name).read_bytes())[:int(share * len(data))])


def instead(name: str, other: str):
    return lambda run, patch: shutil.copy(run / other, run / name)


def changed(name: str, change: Callable[[dict], object]):
    """The checkpoint with its content changed by someone who can write valid files."""
    def write(run, patch):
        content = torch.load(run / name, weights_only=True)
        change(content)
        torch.save(content, run / name)
    return write


def directory(name: str):
    def make(run, patch):
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
    return make


def pipe(name: str):
    def make(run, patch):
        (run / name).unlink()
        os.mkfifo(run / name)
    return make


def environment(**variables: str):
    return lambda run, patch: [patch.setenv(name, value) for name, value in variables.items()]


def images_of(channels: int, size: int):
    """A data set whose images have these channels and size."""
    def replace(run, patch):
        images, labels = torch.zeros(80, channels, size, size, dtype=torch.uint8), torch.zeros(80, dtype=torch.int64)
        split = dataset.Split(images, labels)
        patch.setattr(dataset, "load", lambda *_: dataset.Data(split, split, split, ["all"]))
    return replace


def no_downloads(run, patch):
    """torchvision finds neither a copy nor the network."""
    try:
        import torchvision.datasets  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs a torchvision that fits the installed torch ({error})")

    def fail(*_, download, **__):
        raise OSError("<urlopen error\nno network>") if download else RuntimeError("Dataset not found.")
    patch.setattr("torchvision.datasets.CIFAR10.__init__", fail)


def no_torchvision(run, patch):
    patch.setitem(sys.modules, "torchvision.datasets", None)


def no_memory(message: str, kind: type[Exception] = RuntimeError):
    def fail(*_, **__):
        raise kind(message)
    return lambda run, patch: (patch.setattr(sampler, "draw", fail), patch.setattr(dataset, "load", fail))


class Payload:
    """What it leaves behind when it is unpickled tells that something in a file was run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def payload(name: str, write: Callable[[object, Path], None]):
    return lambda run, patch: write(Payload(run / "pwned"), run / name)


def zipped(value: object, path: Path) -> None:
    """A whole archive as torch.save makes it, but for the pickle in it."""
    whole = io.BytesIO()
    torch.save({}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = pickle.dumps(value, 2) if entry.filename.endswith("data.pkl") else source.read(entry)
            target.writestr(entry.filename, data)


def packed(run, patch):
    """A small file that unpacks to 64 MiB, as it could to any size."""
    with zipfile.ZipFile(run / "vqvae.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))


def laughing(content: dict) -> None:
    """Lists of lists of lists: 10**30 values in a hundred bytes each."""
    value: list = [0]
    for _ in range(30):
        value = [value] * 10
    content["config"] = value


def itself(content: dict) -> None:
    content["config"] = content["config"] | {"hidden": (value := [])}
    value.append(value)


def spread(content: dict) -> None:
    """Weights of the shapes that a huge network has, each one number repeated."""
    content["config"] |= {"hidden": 8192}
    with torch.device("meta"):
        layout = VQVAE(VQVAEConfig(**content["config"])).state_dict()
    content["model"] = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in layout.items()}


def longer(content: dict) -> None:
    content["model"]["quantizer.codebook"] = torch.zeros(17, 8)


def renamed(content: dict) -> None:
    content["model"]["other"] = content["model"].pop("quantizer.codebook")


def doubled(content: dict) -> None:
    content["model"]["quantizer.codebook"] = content["model"]["quantizer.codebook"].double()


def poisoned(content: dict) -> None:
    content["model"]["quantizer.codebook"][0, 0] = float("nan")


def retrained(content: dict) -> None:
    content["model"]["quantizer.codebook"] += 1


def put(*path_and_value):
    """Put a value into a nested dict: put("config", "hidden", 3)."""
    def change(content: dict) -> None:
        *path, name, value = path_and_value
        for part in path:
            content = content[part]
        content[name] = value
    return change


def state_dict(run, patch) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), run / "vqvae.pt")


def unfinished(content: dict) -> None:
    content["training"]["finished"] = False


def shared(content: dict) -> None:
    content["shared"] = True


V, P, D, A, G, C, R, S, E, B, L = SCRIPTS
H = "share"
AGAIN = ["--limit", "300", "--batch-size", "50", "--hidden", "16", "--residual-hidden", "8", "--num-codes", "16",
         "--code-dim", "8", "--epochs", "2"]
PRIOR = ["--prior", "pixelcnn", "--hidden", "16", "--layers", "2", "--batch-size", "50", "--epochs", "2"]
AGAIN_FROM = ", no checkpoint of this project: fetch it again from where it came, or choose another directory"
DAMAGED, NO_FILE, NO_TORCH, PICKLE, OTHER = (f"vqvae.pt {what}{AGAIN_FROM}" for what in (
    "is damaged, or holds more than tensors, numbers and texts (a pickled module, perhaps)", "is no file",
    "is no file of torch", "is a pickle, or weights in torch's format before 1.6", "holds weights of another project"))

# script, flags, what is wrong with the directory or around it, exit status, fragment of the line
TABLE = [
    # flags: every kind of rule once, in cli.py
    *[(script, ["--no-such-flag", "1"], None, 2, "unrecognized arguments: --no-such-flag 1") for script in SCRIPTS],
    *[(script, ["--device", "cuda:4096"], None, 1, "DEVICE (--device): there is no cuda:4096") for script in SCRIPTS],
    (V, ["--device", "tpu"], None, 2, "DEVICE (--device) must match"),
    (V, ["--output-dir", ""], None, 2, "OUTPUT_DIR (--output-dir) must match .+, not ''"),
    (V, ["--output-dir", "a\nb"], None, 2, r"OUTPUT_DIR (--output-dir) must match .+, not 'a\nb'"),
    (V, ["--seed", "-1"], None, 2, "SEED (--seed) must be at least 0, not -1"),
    (V, ["--epochs"], None, 2, "expected one argument"),
    (V, ["--epochs", "many"], None, 2, "must be a whole number or auto, not 'many'"),
    (V, ["--epochs", "1.5"], None, 2, "must be a whole number or auto, not '1.5'"),
    (A, ["--epochs", "auto"], None, 2, "EPOCHS (--epochs) must be a whole number, not 'auto'"),
    (V, ["--epoch", "2"], None, 2, "unrecognized arguments: --epoch"),
    (V, ["extra"], None, 2, "unrecognized arguments: extra"),
    (V, ["--overwrite=yes"], None, 2, "ignored explicit argument 'yes'"),
    (V, ["--learning-rate", "nan"], None, 2, "LEARNING_RATE (--learning-rate) must be finite"),
    (P, ["--save-every", "inf"], None, 2, "SAVE_EVERY (--save-every) must be finite"),
    (V, ["--learning-rate", "0"], None, 2, "must be above 0"),
    (D, ["--perceptual", "lpips"], None, 2, "PERCEPTUAL (--perceptual) must be a number, not 'lpips'"),
    (V, ["--num-codes", "99999999999999999999"], None, 2, "must be at most 32768"),
    (V, ["--downsample", "3"], None, 2, "DOWNSAMPLE (--downsample) must be one of 2, 4, 8, 16, auto, not 3"),
    (V, ["--channels", "2"], None, 2, "CHANNELS (--channels) must be one of 1, 3, auto, not 2"),
    (P, ["--optimizer", "sgd"], None, 2, "OPTIMIZER (--optimizer) must be one of muon, adam, auto, not 'sgd'"),
    (P, ["--prior", "lstm"], None, 2, "PRIOR (--prior) must be one of pixelcnn, transformer, masked, not 'lstm'"),
    (P, ["--kernel-size", "4"], None, 2, "KERNEL_SIZE (--kernel-size) must be odd, not 4"),
    (V, ["--value-range", "dark bright"], None, 2, "VALUE_RANGE (--value-range) must match"),
    (V, ["--image-size", "0x4"], None, 2, "IMAGE_SIZE (--image-size) must match"),
    (B, ["--temperatures", "0.7 warm"], None, 2, "TEMPERATURES (--temperatures) must match"),
    (B, ["--step-counts", "8 all"], None, 2, "STEP_COUNTS (--step-counts) must match"),
    (B, ["--guidances", "1 100"], None, 2, "GUIDANCES (--guidances) must match"),
    (A, ["--hidden", "64"], None, 2, "unrecognized arguments: --hidden 64"),
    # flags that do not fit the run, the images or each other
    (P, ["--prior", "transformer", "--heads", "5"], None, 1,
     "HIDDEN (--hidden) and HEADS (--heads): heads must divide"),
    (V, ["--limit", "1"], None, 1, "LIMIT (--limit)"),
    (V, ["--limit", "30", "--batch-size", "64", "--resume", "never", "--overwrite"], None, 1,
     "BATCH_SIZE (--batch-size) of 64 is more than the"),
    (G, ["--samples-dir", "{file}"], None, 1, "File exists"),
    (G, ["--guidance", "2", "--class-label", "none"], None, 1,
     "GUIDANCE (--guidance) of 2 needs a class: choose one by CLASS_LABEL (--class-label)"),
    (C, ["--guidance", "2"], None, 1, "GUIDANCE (--guidance) of 2 needs a class: give it by CLASS_GIVEN"),
    *[(script, ["--guidance", "2"], changed("pixelcnn.pt", put("training", "constants", "CLASS_DROPOUT", 0.0)), 1,
       "needs a prior trained with CLASS_DROPOUT above 0 and below 1, and pixelcnn.pt had 0") for script in (G, C, E)],
    (G, ["--class-label", "10"], None, 1, "CLASS_LABEL (--class-label): there is no class 10; there are 0 to 9"),
    (G, ["--class-label", "-1"], None, 1, "CLASS_LABEL (--class-label): there is no class -1; there are 0 to 9"),
    (C, ["--mask", "middle"], None, 1, "MASK (--mask): there is no image file 'middle', and it is none of top, bottom"),
    (C, ["--mask", "{file}"], None, 1, "cannot be decoded"),
    *[(script, ["--num-images", "100000"], None, 1, "NUM_IMAGES (--num-images) of 100000 is more than the")
      for script in (R, C)],
    (L, ["--against", "nothing"], None, 1, "AGAINST (--against): 'nothing' is no data set and no folder; there are"),
    *[(V, ["--dataset", name], None, 1, f"DATASET (--dataset): {name!r} is {what}; there are: glyphs, mnist")
      for name, what in (
        ("MNIST", "no data set: `--dataset mnist` is meant, perhaps"),
        ("fashionmnist", "no data set: `--dataset fashion_mnist` is meant, perhaps"),
        ("cifar-10", "no data set: `--dataset cifar10` is meant, perhaps"),
        ("C:\\Users\\me\\faces", "a path of Windows, which this system writes with / and without a drive"),
        ("no/such/place", "no data set and no folder, no is not there"))],
    (V, ["--dataset", "{file}"], None, 1, "is a file: name its folder"),
    (V, ["--dataset", "{packed}"], None, 1, "there is no image in"),
    (V, ["--dataset", "{packed}"], None, 1, "1 .zip; unpack the archives first"),
    (V, ["--dataset", "{archive}"], None, 1, "is an archive: unpack it, and name the folder"),
    (L, ["--dataset", "{file}"], None, 1, "cannot be decoded"),
    *[(L, [flag, *place], None, 1, f"{name} ({flag}): its images have {has} pixels, the VQ-VAE was trained on 1 "
       "channels and 28x28: add --image-size 28x28 --channels 1")
      for name, flag in (("DATASET", "--dataset"), ("AGAINST", "--against"))
      for place, has in ((["{larger}", "--image-size", "auto"], "1 channels and 32x20"),
                         (["{coloured}", "--channels", "3"], "3 channels and 28x28"))],
    *[(L, [], changed("pixelcnn.pt", put("expected", {"score_version": VERSION, "bits": bits, "surprise": bits,
                                                      "code_bits": bits})), 1, "of the validation images is damaged")
      for bits in ([1.0], torch.ones(16, dtype=torch.bfloat16))],
    (C, ["--dataset", "{coloured}", "--class-given"], None, 1, "CLASS_GIVEN (--class-given): the classes of"),
    *[(L, [flag, "{empty}"], None, 1, f"{name} ({flag}): there is no image in")
      for name, flag in (("DATASET", "--dataset"), ("AGAINST", "--against"))],
    (L, ["--prior", "masked"], instead("masked.pt", "pixelcnn.pt"), 1,
     "masked.pt is the checkpoint of the stage 'pixelcnn', not of 'masked'"),
    (E, ["--num-samples", "7"], None, 1, "images leave 7 to compare: at least 8 are needed"),
    # weights to share, and weights of a directory of their own
    *[(script, ["--pretrained", "{empty}"], None, 1, "empty/vqvae.pt does not exist: make it with `python "
       "train_vqvae.py --output-dir") for script in (G, C, R, S, E, B, L)],
    (H, ["--shared-dir", "{run}/../run/"], None, 1, "SHARED_DIR (--shared-dir) is the run's directory itself"),
    (H, ["--shared-dir", "{trained}"], None, 1, "holds vqvae.pt: choose another directory, or add --overwrite"),
    (H, ["--shared-dir", "{file}"], None, 1, "File exists"),
    (H, [], changed("vqvae.pt", unfinished), 1, "vqvae.pt is of a training that has not finished: continue it"),
    (H, [], changed("pixelcnn.pt", unfinished), 1, "pixelcnn.pt is of a training that has not finished: continue it"),
    (H, [], changed("vqvae.pt", retrained), 1, "learnt the codes of another vqvae.pt"),
    (H, [], changed("pixelcnn.pt", put("vqvae", "0" * 64)), 1, "learnt the codes of another vqvae.pt"),
    *[(H, [], cut(f"{stage}.pt", 0.9), 1, f"{stage}.pt is damaged") for stage in ("vqvae", "pixelcnn")],
    (V, AGAIN, changed("vqvae.pt", shared), 1, "is of share.py: weights alone, which cannot be continued: choose"),
    (P, PRIOR, changed("pixelcnn.pt", shared), 1, "is of share.py: weights alone, which cannot be continued: choose"),
    (P, [*PRIOR, "--resume", "never"], changed("pixelcnn.pt", shared), 1, "is a finished run: choose another"),
    # what a run cannot be continued with
    (V, [*AGAIN, "--num-codes", "32"], None, 1, "NUM_CODES (--num-codes) is 32, but the run in"),
    (P, [*PRIOR, "--kernel-size", "5"], None, 1, "KERNEL_SIZE (--kernel-size) is 5, but the run in"),
    (V, [*AGAIN, "--resume", "never"], None, 1, "is a finished run: choose another --output-dir, or add --overwrite"),
    (V, AGAIN, changed("vqvae.pt", put("training", "optimizer", 0, "exp_avg", torch.zeros(3))), 1,
     "cannot be continued from"),
    (V, AGAIN, changed("vqvae.pt", put("training", None)), 1, "cannot be continued from"),
    (V, AGAIN, changed("vqvae.pt", put("training", "random", "cpu", torch.zeros(3))), 1, "cannot be continued from"),
    # checkpoints
    *[(script, [], lacking("vqvae.pt"), 1, "vqvae.pt does not exist: make it with `python train_vqvae.py --output-dir")
      for script in (P, A, G, C, R, S, E, B, L)],
    *[(script, [], lacking("pixelcnn.pt"), 1,
       "transformer.pt does not exist: make it with `python train_pixelcnn.py --output-dir")
      for script in (G, C, B, L)],
    *[(script, ["--prior", "masked"], None, 1,
       "masked.pt does not exist: make it with `python train_pixelcnn.py --prior masked --output-dir")
      for script in (G, C, B, L)],
    (G, ["--prior", "masked"], instead("masked.pt", "pixelcnn.pt"), 1,
     "masked.pt is the checkpoint of the stage 'pixelcnn', not of 'masked'"),
    (G, [], changed("pixelcnn.pt", put("config", None)), 1,
     "the pixelcnn checkpoint describes no network of this code"),
    *[(script, [], cut("vqvae.pt", 0.7), 1, DAMAGED) for script in SCRIPTS],
    (V, ["--resume", "never"], cut("vqvae.pt", 0.7), 1, DAMAGED),
    *[(script, [], cut("pixelcnn.pt", 0.99), 1, "pixelcnn.pt is damaged") for script in (G, B, L)],
    *[(script, [], changed("vqvae.pt", put("config", None)), 1, "the vqvae checkpoint describes no network")
      for script in (P, A, G, C, R, S, E, B, L)],
    (R, [], holding("vqvae.pt", b""), 1, NO_TORCH),
    (R, [], holding("vqvae.pt", b"\x89PNG\r\n" + bytes(1000)), 1, NO_TORCH),
    (S, [], instead("vqvae.pt", "vqvae_history.csv"), 1, NO_TORCH),
    (R, [], directory("vqvae.pt"), 1, NO_FILE),
    (R, [], pipe("vqvae.pt"), 1, NO_FILE),
    (S, [], payload("vqvae.pt", lambda value, path: path.write_bytes(pickle.dumps(value))), 1, PICKLE),
    (S, [], payload("vqvae.pt", lambda value, path: torch.save(value, path)), 1, DAMAGED),
    (S, [], payload("vqvae.pt", lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False)), 1,
     PICKLE),
    (S, [], payload("vqvae.pt", lambda value, path: zipped({"format": value}, path)), 1, DAMAGED),
    (S, [], lambda run, patch: zipped(bytearray(8), run / "vqvae.pt"), 1, OTHER),
    (S, [], packed, 1, DAMAGED),
    (S, [], changed("vqvae.pt", laughing), 1, "the vqvae checkpoint describes no network of this code"),
    (S, [], changed("vqvae.pt", itself), 1, "the vqvae checkpoint describes no network of this code"),
    (S, [], changed("vqvae.pt", spread), 1, "weights that are not finite or do not fit its sizes"),
    (S, [], changed("vqvae.pt", put("format", "other")), 1, OTHER),
    (S, [], state_dict, 1, OTHER),
    (S, [], holding("vqvae.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), 1,
     "vqvae.pt is a pointer of Git LFS, not the weights (`git lfs pull` fetches these)" + AGAIN_FROM),
    (S, [], changed("vqvae.pt", put("version", 99)), 1, "vqvae.pt is of version 99, this code reads version"),
    (G, [], instead("vqvae.pt", "pixelcnn.pt"), 1, "vqvae.pt is the checkpoint of the stage 'pixelcnn', not of"),
    (G, [], instead("pixelcnn.pt", "vqvae.pt"), 1, "pixelcnn.pt is the checkpoint of the stage 'vqvae'"),
    (S, [], changed("vqvae.pt", longer), 1, "weights that are not finite or do not fit its sizes (quantizer.codebook)"),
    (S, [], changed("vqvae.pt", renamed), 1, "do not fit its sizes (other)"),
    (S, [], changed("vqvae.pt", doubled), 1, "do not fit its sizes (quantizer.codebook)"),
    (S, [], changed("vqvae.pt", poisoned), 1, "weights that are not finite"),
    (S, [], changed("vqvae.pt", put("config", "hidden", 8192)), 1, "do not fit its sizes"),
    (S, [], changed("vqvae.pt", put("config", "hidden", 10**15)), 1, "must be at most 8192"),
    (S, [], changed("vqvae.pt", put("config", "levels", 2)), 1, "has LEVELS 2, which this code has no longer since"),
    (S, [], changed("vqvae.pt", put("config", "depth", 3)), 1, "describes no network of this code"),
    (S, [], changed("vqvae.pt", put("config", [])), 1, "describes no network of this code"),
    (S, [], changed("vqvae.pt", put("data", "height", 10**9)), 1, "does not say what images it was trained on"),
    (R, [], changed("vqvae.pt", put("data", {})), 1, "does not say what images it was trained on"),
    *[(script, [], changed("vqvae.pt", retrained), 1, "learnt the codes of another vqvae.pt")
      for script in (G, C, B, L)],
    (G, [], changed("pixelcnn.pt", put("vqvae", "0" * 64)), 1, "learnt the codes of another vqvae.pt"),
    (G, [], changed("pixelcnn.pt", put("grid", [10**6, 10**6])), 1, "learnt the codes of another vqvae.pt"),
    (P, PRIOR, changed("vqvae.pt", retrained), 1, "vqvae.pt changed since the run in"),
    # data sets
    (V, ["--dataset", "nothing"], None, 1, "DATASET (--dataset)"),
    (R, ["--dataset", "../../../etc"], None, 1, "DATASET (--dataset)"),
    (V, ["--dataset", "$(touch x)"], None, 1, "DATASET (--dataset)"),
    (V, ["--dataset", "cifar10"], no_downloads, 1, "cifar10 is not in"),
    (P, ["--dataset", "cifar10"], no_downloads, 1, "cifar10 is not in"),
    (R, ["--dataset", "cifar10"], no_torchvision, 1, "needs a torchvision that fits"),
    *[(script, [], images_of(3, 28), 1, "its images have 3 channels and 28x28 pixels, the VQ-VAE was trained on 1")
      for script in (R, C, A, E, L)],
    (C, ["--class-given"], images_of(1, 28), 1, "CLASS_GIVEN (--class-given): the classes of DATASET are not those"),
    *[(script, [], images_of(1, 28), 1, "DATASET (--dataset): its classes are not those that pixelcnn.pt learnt")
      for script in (E, B)],
    (P, [], images_of(1, 32), 1, "its images have 1 channels and 32x32 pixels"),
    (V, AGAIN, images_of(3, 28), 1, "there are 80 training images now"),
    # the environment
    (V, [], directory(".lock"), 1, "Is a directory"),
    (S, ["--output-dir", "{file}"], None, 1, "vqvae.pt does not exist"),
    (V, ["--output-dir", "{file}"], None, 1, "File exists"),
    (S, [], directory("random_samples.png"), 1, "Is a directory"),
    (G, [], environment(WORLD_SIZE="2"), 1, "cannot join the other processes"),
    (V, [], environment(WORLD_SIZE="two", RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1"), 1, "cannot join"),
    (P, [], environment(LOCAL_RANK="x"), 1, "LOCAL_RANK is 'x' in the environment"),
    (G, [], no_memory("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), 1,
     "out of memory"),
    (R, [], no_memory("CUDA out of memory. Tried to allocate\nmuch"), 1,
     "out of memory: try a smaller --image-size or --num-images"),
    (P, PRIOR, no_memory("", MemoryError), 1, "out of memory: try a smaller --batch-size"),
]


@pytest.fixture(scope="module")
def once(trained, tmp_path_factory):
    """A directory with a copy of the run: it is the same again before every row."""
    place = tmp_path_factory.mktemp("bad")
    (place / "packed").mkdir()
    for name in ("file", "images.zip", "packed/a.zip"):
        (place / name).write_text("a file\n")

    def renew() -> Path:
        shutil.rmtree(place / "run", ignore_errors=True)
        (place / "run").mkdir()
        for name in ("vqvae.pt", "pixelcnn.pt", "vqvae_history.csv"):
            shutil.copy(trained / name, place / "run")
        return place / "run"
    (place / "empty").mkdir()
    places = {"file": place / "file", "empty": place / "empty", "trained": trained,
              "archive": place / "images.zip", "packed": place / "packed",
              "larger": write(place / "larger.png", noise(32, 20)),
              "coloured": write(place / "coloured.png", noise(28, 28, 3))}
    return SimpleNamespace(renew=renew, places=places)


@pytest.mark.parametrize("name, change", [("vqvae.pt", put("config", "downsample", "4")),
                                          ("vqvae.pt", put("data", "height", "28")),
                                          ("pixelcnn.pt", put("training", "history", [torch.zeros(3)]))])
def test_a_value_of_another_type_that_says_the_same_or_is_not_needed(script, once, name, change):
    run = once.renew()
    shutil.copy(run / "pixelcnn.pt", run / "transformer.pt")  # damaged, as a transformer: the history is looked at
    changed(name, change)(run, None)
    assert script(G, "--output-dir", run, "--num-samples", 1).status == 0


def test_the_table_is_long_enough():
    assert len(TABLE) >= 60 and {row[0] for row in TABLE} == {*SCRIPTS, H}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: " ".join([row[0], *row[1], "->", row[4]])[:100])
def test_bad_input_is_one_line(script, once, data_dir, monkeypatch, row):
    name, flags, damage, status, fragment = row
    run = once.renew()
    if damage:
        damage(run, monkeypatch)
    before = {path.name: path.read_bytes() for path in run.glob("*.pt") if path.is_file()}
    flags = [flag.format(run=run, **once.places) for flag in flags]
    given = [] if "--output-dir" in flags else ["--output-dir", run]
    data = ["--data-dir", data_dir] if name == V else []
    if name == H and "--shared-dir" not in flags:
        given += ["--shared-dir", run / "shared"]
    outcome = script(name, *data, *given, *flags)
    line = outcome.err.split("\r")[-1]  # after what a progress bar has wiped
    print(f"{name}.py {' '.join(flags)} | {outcome.status} | {line}")
    assert outcome.status == status
    assert line.startswith(f"{name}.py: error: ") and line.endswith("\n") and line.count("\n") == 1
    assert fragment in line and "Traceback" not in outcome.err
    assert {path.name: path.read_bytes() for path in run.glob("*.pt") if path.is_file()} == before
    assert not (run / "pwned").exists() and not list(run.rglob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_names_that_are_no_text_of_the_locale(trained, tmp_path):
    """UTF-8 where the locale is ASCII, and bytes that are no UTF-8: as directory, as file, and in what is printed."""
    for name in ("\u00e4rzte".encode(), b"\xff"):
        place = os.fsencode(tmp_path) + b"/" + name
        shutil.copytree(os.fsencode(trained), place)
        write(Path(os.fsdecode(place + b"/" + name + b".png")), noise(28, 28))
        done = subprocess.run([sys.executable, b"reconstruct.py", b"--output-dir", place, b"--dataset",
                               place + b"/" + name + b".png", b"--latent-channel", b"1"], cwd=ROOT, capture_output=True,
                              env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
        assert done.returncode == 0, done.stderr
        assert os.path.exists(place + b"/reconstructions.png")


def test_names_that_a_terminal_cannot_show(script, trained, tmp_path):
    output = shutil.copytree(trained, tmp_path / "\u0434")
    encoding = sys.stdout.encoding
    sys.stdout.reconfigure(encoding="ascii")
    try:
        outcome = script("random_sample", "--output-dir", output, "--num-samples", 2)
    finally:
        sys.stdout.reconfigure(encoding=encoding)
    assert outcome.status == 0 and "wrote 2 decoded random grids" in outcome.out


def test_only_the_runs_directory_and_the_data_are_written(script, trained, data_dir, tmp_path, monkeypatch):
    output = shutil.copytree(trained, tmp_path / "run")
    written, watching = [], True

    def watch(event, args):
        writes = watching and event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and isinstance(args[0], str):
            written.append(args[0])
    sys.addaudithook(watch)
    outcomes = [script(V, *AGAIN, "--data-dir", data_dir, "--output-dir", output),
                script(P, *PRIOR, "--limit", 300, "--output-dir", output, "--resume", "never", "--overwrite"),
                script(G, "--num-samples", 2, "--output-dir", output),
                script(R, "--num-images", 2, "--output-dir", output),
                script(S, "--num-samples", 2, "--output-dir", output)]
    watching = False
    assert [outcome.status for outcome in outcomes] == [0] * 5, outcomes
    outside = {path for path in written if not path.startswith((str(output), str(data_dir), "/dev/"))}
    assert len(written) > 10 and not outside

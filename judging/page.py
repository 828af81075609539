"""report.html: a run's directory as one page to look at and to pass on.

The page is made from the files that evaluate.py, ablation.py and the trainings left in the directory. Pictures are
embedded, so the page needs no other file and no connection. Each part that a run lacks is named in one line.
"""
import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from judging.markup import anchor, missing, picture, table, text, write
from judging.report import present
from judging.vae import VAE, VAEConfig
from loading.layout import PICTURE
from priors import runs
from running.cli import UserError
from training import checkpoint

NAME = "report.html"
STAGES = [*runs.STAGES, "vae"]
TITLES = dict(zip(STAGES, STAGES)) | {"vqvae": "VQ-VAE", "decoder": "finished decoder", "pixelcnn": "PixelCNN",
                                      "masked": "masked prior", "vae": "VAE (the baseline)"}
SHOWN_FIRST = ("EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "SEED")  # constants of a training in the first table
MEASURED_WITH = ("TEMPERATURE", "TOP_K", "TOP_P", "GUIDANCE", "FEATURES", "SEED")  # constants above a table of measures
CODEBOOK = "<p>{codes_used} of {codes} codes occur in the test split. Their perplexity is {perplexity:.1f}.</p>"
ARROWS = {"lower": " \N{DOWNWARDS ARROW}", "higher": " \N{UPWARDS ARROW}", "": ""}


def write_page(output_dir: str, pretrained: str = "") -> Path:
    """Write report.html into a run's directory, from the files that are there. Returns its path.

    pretrained: the directory of the weights, if that is another.
    """
    run, weights = Path(output_dir), pretrained or output_dir
    flags = ["--output-dir", output_dir, *(["--pretrained", pretrained] if pretrained else [])]
    evaluate, ablate = (f"run `{shlex.join(['python', f'{name}.py', *flags])}`" for name in ("evaluate", "ablation"))
    found, left_out = load_stages(weights)
    evaluation, ablation = (read_rows(run / f"{stem}.json") for stem in ("evaluation", "ablation"))
    facts = evaluation or {}
    best = facts.get("best") or "the best prior"
    sections = {
        "Settings": [*map(missing, left_out), *_settings(found, facts)],
        "Training": _training(run, found),
        "Reconstructions": [_reconstructions(run, "reconstructions", "train_vqvae.py", "the VQ-VAE"), *(
            [_reconstructions(run, "decoder_reconstructions", "train_decoder.py", "the finished decoder")]
            if "decoder" in found else [])],
        "Samples": [picture(run / "samples_by_class.png", f"New images of {best}, below the class that was asked for "
                             "if the run has classes. Good: each shows its class, and no two are the same.", evaluate)],
        "Measures": _measures(run, weights, evaluation, "evaluation", evaluate, "Images of every model, a row each. "
                              "Good: the rows of the priors look like the real images in the first row."),
        "Ablation": _measures(run, weights, ablation, "ablation", ablate, "Samples without the prior or a part of the "
                              "sampling. The encoder's own codes are the best that a prior can reach."),
        "Nearest training images": [picture(
            run / "nearest.png", f"Samples of {best}, below each the training image nearest to it by pixels. Good: "
            "alike in kind and different in detail. Copies would mean that the prior has memorised.", evaluate)],
        "Codebook": [CODEBOOK.format_map(facts) if "perplexity" in facts else "", picture(
            run / "codebook.png", "How often every code occurs in the test split, most frequent first. Good: most "
            "codes are near the even share. In a collapse all but a few are at 0.", evaluate), picture(
            run / "latents.png", "Images, one channel of what the encoder makes of them and of the nearest codes, and "
            "the map of the codes. Good: the maps show the shapes of the images.", "`reconstruct.py` writes it")],
    }
    dataset = found["vqvae"]["data"]["dataset"] if "vqvae" in found else "unknown images"
    title = text(f"VQ-VAE on {Path(dataset).name or dataset}")
    body = [f"<h1>{title}</h1>",
            f'<p class="soft">The run in {text(run.resolve().name)}, page written on '
            f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}. Every figure is of the test split, unless it says "
            f"otherwise; no image was selected.</p>", "<nav>",
            *(f'<a href="#{anchor(name)}">{name}</a>' for name in sections), "</nav>"]
    for name, parts in sections.items():
        body.append(f'<section id="{anchor(name)}"><h2>{name}</h2>{"".join(parts)}</section>')
    write(run / NAME, title, body)
    return run / NAME


def load_stages(weights: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The checkpoints of a directory by stage, and a line for each that cannot be used."""
    found, left_out = {}, []
    for stage in STAGES:
        if checkpoint.path_of(weights, stage).exists():
            try:
                stored = checkpoint.load(weights, stage)
                checkpoint.build(stored, VAE, VAEConfig) if stage == "vae" else runs.build(stored)  # checks its sizes
                found[stage] = stored
            except UserError as error:
                left_out.append(f"left out: {error}")
    return found, left_out


def read_rows(path: Path) -> dict[str, Any] | None:
    """What a script reported as JSON: facts, and in "rows" measures by name. None if it is not there or not that."""
    try:
        content = json.loads(path.read_bytes())
        content["rows"] = {title: {name: float(value) for name, value in row.items()}
                           for title, row in content["rows"].items()}
        content["constants"] = dict(content.get("constants", {}))
        content["doubts"] = list(content.get("doubts", []))
        if "perplexity" in content:
            content["perplexity"] = float(content["perplexity"])
            content |= {name: int(content[name]) for name in ("codes", "codes_used")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return content


def _settings(found: dict[str, dict], facts: dict[str, Any]) -> list[str]:
    parts, details, rows = [], [], {}
    if "vqvae" in found:
        data, config = found["vqvae"]["data"], found["vqvae"]["config"]
        parts.append(f"<p>{text(data['dataset'])}: images of {data['channels']}x{data['height']}x{data['width']}, "
                     f"{len(data['class_names'])} classes. A code stands for {config['downsample']}x"
                     f"{config['downsample']} pixels and is one of {config['num_codes']}.</p>")
    for stage, stored in found.items():
        constants = checkpoint.constants(stored)
        rows[TITLES[stage]] = {"weights": f"{sum(tensor.numel() for tensor in stored['model'].values()):,}",
                               **{name: constants[name] for name in SHOWN_FIRST if name in constants},
                               "training": "not finished" if checkpoint.unfinished(stored) else "finished"}
        details.append(_constants(f"the training of {TITLES[stage]}", constants))
    if rows:
        parts.append(table("network", rows, ["weights", *SHOWN_FIRST, "training"]))
    if "constants" in facts:
        details.append(_constants("evaluate.py", facts["constants"]))
    return parts + details


def _training(run: Path, found: dict[str, dict]) -> list[str]:
    parts = [picture(run / PICTURE, "Training images of every class, as the training saw them.",
                      "`train_vqvae.py` and `dataset.py` write it")]
    for stage in STAGES:
        if stage in found or (run / f"{stage}_curves.png").exists():
            parts.append(picture(
                run / f"{stage}_curves.png", f"Curves of the training of {TITLES[stage]}: left all epochs, right the "
                "later half on a scale of its own. Good: both fall, and the validation split stays near the training. "
                "If its curve turns upwards, the network overfits.", "the training writes it"))
    untrained = [TITLES[stage] for stage in STAGES if stage not in found]
    return parts + ([missing(f"not trained in this run, or left out: {', '.join(untrained)}")] if untrained else [])


def _reconstructions(run: Path, folder: str, script: str, of: str) -> str:
    """The picture of the last epoch, by its number, that a script wrote into a folder of the run."""
    last = max(run.glob(f"{folder}/epoch_*.png"), key=lambda path: (len(path.name), path.name),
               default=run / folder / "epoch_001.png")
    return picture(last, f"Validation images, below each its reconstruction after epoch {last.stem[6:].lstrip('0')} "
                    f"of {of}. Good: no pair can be told apart. What is lost here no prior can bring back.",
                    f"`{script}` writes it")


def _measures(run: Path, weights: str, content: dict[str, Any] | None, stem: str, by: str, seen: str) -> list[str]:
    """The table and the figure that a script wrote as `stem`.json and `stem`.png. weights: their directory."""
    path = run / f"{stem}.json"
    if content is None:
        return [missing(f"{path.name} cannot be read: {by} again" if path.exists() else f"no {path.name}: {by}")]
    columns, constants = present(content["rows"]), content["constants"]
    heads = {name: column.head + ARROWS[column.better] for name, column in columns.items()}
    cells = {title: {heads[name]: format(row[name], column.form) for name, column in columns.items() if name in row}
             for title, row in content["rows"].items()}
    told = [f"{content.get('images_per_row', '?')} images a row",
            *(f"{name} {constants[name]}" for name in MEASURED_WITH if name in constants),
            *([f"samples of {content['sampling']}"] if content.get("sampling") else [])]
    notes = "".join(f"<dt>{heads[name]}</dt><dd>{column.note}</dd>" for name, column in columns.items())
    parts = [f'<p class="soft">{text(", ".join(told))}.</p>', *map(missing, content["doubts"]),
             table("", cells, list(heads.values())),
             f'<p class="soft">An arrow says whether lower or higher is better.</p><dl>{notes}</dl>']
    checkpoints = [checkpoint.path_of(weights, stage) for stage in STAGES]
    if newer := [file.name for file in checkpoints if file.is_file() and file.stat().st_mtime > path.stat().st_mtime]:
        parts.append(missing(f"{path.name} was written before {', '.join(newer)}: {by} again to measure these"))
    return parts + [picture(run / f"{stem}.png", f"{seen} A column shows the same test image, or its class.", by)]


def _constants(of: str, constants: dict[str, Any]) -> str:
    """A table that a reader opens with a click."""
    rows = table("constant", {name: {"value": value} for name, value in constants.items()}, ["value"])
    return f"<details><summary>all constants of {of}</summary>{rows}</details>"

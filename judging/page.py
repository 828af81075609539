"""report.html: a run's directory as one page to look at and to pass on.

The page is made of the files that evaluate.py, ablation.py and the trainings left in the directory, and is read alone:
pictures are embedded, and there is no script and no link to anything else. What a run lacks is named in one line.
"""
import base64
import html
import io
import json
import re
import shlex
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from judging.report import COLUMNS
from judging.vae import VAE, VAEConfig
from loading.layout import PICTURE
from priors import runs
from running.cli import UserError
from running.files import atomic
from training import checkpoint

NAME = "report.html"
LARGEST = 2**21         # bytes of a picture that is embedded as it is; a larger one becomes a JPEG ...
WIDEST = 1600           # ... of so many pixels across
TITLES = {"vqvae": "VQ-VAE", "pixelcnn": "PixelCNN", "transformer": "transformer", "masked": "masked prior",
          "vae": "VAE (the baseline)"}
STAGES = [*runs.STAGES, "vae"]
SHOWN_FIRST = ("EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "SEED")  # constants of a training that the first table shows
# what is good in a column of a table of measures, and what the column says
NOTES = {
    "bits_per_image": ("lower", "of the test split's codes under the prior; of the VAE, the divergence of its "
                                "posterior from its prior"),
    "bits_per_hidden_code": ("lower", "of a code of the test split that a masked prior does not see, given those that "
                                      "it sees"),
    "mse": ("lower", "mean squared error of pixels in [0, 1], over the test split"),
    "psnr": ("higher", "of the mean MSE, in dB"),
    "ssim": ("higher", "structural similarity, at most 1"),
    "frechet": ("lower", "distance to the test images in the features of a small network trained on these images: "
                         "comparable within this run, and no FID of a paper"),
    "precision": ("higher", "share of the images that lie among the test images, in the same features"),
    "recall": ("higher", "share of the test images that lie among these images: low where variety is lost"),
    "class_accuracy": ("higher", "share that the classifier gives the class that was asked for"),
    "distinct": ("higher", "share of different grids of codes"),
    "seconds": ("lower", "time of drawing the row's grids"),
    "nearest": ("", "mean distance to the nearest training image: far below that of reconstructions of test images "
                    "means memorised"),
    "fid": ("lower", "Fréchet distance in the features of an Inception network"),
    "inception_score": ("higher", "Inception score"),
}
ARROWS = {"lower": " \N{DOWNWARDS ARROW}", "higher": " \N{UPWARDS ARROW}", "": ""}
STYLE = """
:root { color-scheme: light dark; --text: #1d2127; --soft: #5b6472; --line: #d9dde3; --back: #fff; --card: #f5f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ec; --soft: #9aa4b2; --line: #363c46; --back: #14171c; --card: #1e232b } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem }
p, dl, figcaption { max-width: 46rem; margin: .5rem 0 }
nav { margin: 1rem 0; line-height: 2 } nav a { margin-right: 1rem; white-space: nowrap }
a { color: inherit }
.soft, figcaption, dl { color: var(--soft); font-size: .9rem }
.missing { border-left: 3px solid var(--line); padding-left: .7rem; color: var(--soft) }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; margin: 1.2rem 0 }
.facts div { background: var(--card); border-radius: 6px; padding: .6rem .8rem }
.facts b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums }
.facts span { color: var(--soft); font-size: .85rem }
figure { margin: 1rem 0 1.6rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
img { display: block; max-width: min(100%, 60rem); height: auto; background: #fff; margin: 0 auto }
img.wide { min-width: 46rem }
code { font-size: .9em }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
tr:last-child > * { border-bottom: 0 }
thead th { background: var(--card); font-weight: 600 }
th:first-child { text-align: left; font-weight: 500; position: sticky; left: 0; background: var(--card) }
.constants td { text-align: left; white-space: normal; width: 100% }
details { margin: .6rem 0 } summary { cursor: pointer }
dt { float: left; clear: left; margin-right: .5rem; color: var(--text) } dd { margin: 0 0 .2rem }
@media (max-width: 40rem) {
  body { padding: 1rem .8rem 3rem } th, td { padding: .35rem .5rem }
  th:first-child { max-width: 9.5rem; white-space: normal } }
"""


def write_page(output_dir: str, pretrained: str = "") -> Path:
    """Write report.html into a run's directory, from the files that are there. Returns its path.

    pretrained: the directory of the weights, if that is another.
    """
    run, weights, found, left_out = Path(output_dir), pretrained or output_dir, {}, []
    by = partial(_by, ["--output-dir", output_dir, *(["--pretrained", pretrained] if pretrained else [])])
    for stage in STAGES:
        if checkpoint.path_of(weights, stage).exists():
            try:
                stored = checkpoint.load(weights, stage)
                checkpoint.build(stored, VAE, VAEConfig) if stage == "vae" else runs.build(stored)  # checks its sizes
                found[stage] = stored
            except UserError as error:
                left_out.append(f"left out: {error}")
    evaluation, ablation = (_read_rows(run / f"{stem}.json") for stem in ("evaluation", "ablation"))
    sections = {
        "Settings": [*map(_missing, left_out), *_settings(found, evaluation)],
        "Training": _training(run, found),
        "Reconstructions": _reconstructions(run),
        "Samples": _samples(run, evaluation, by("evaluate.py")),
        "Measures": _measures(run, evaluation, "evaluation", by("evaluate.py"), "samples of every model, a row each: "
                              "the rows of the priors should look like the real images in the first", weights),
        "Ablation": _measures(run, ablation, "ablation", by("ablation.py"), "what is left where the prior or the "
                              "sampling is taken away: from the encoder's own codes, the best that a prior could do, "
                              "down to codes without any prior", weights),
        "Nearest training images": _nearest(run, evaluation, by("evaluate.py")),
        "Codebook": _codebook(run, evaluation, by("evaluate.py")),
    }
    data = found["vqvae"]["data"] if "vqvae" in found else {}
    dataset = data.get("dataset", "unknown images")
    title = f"VQ-VAE on {Path(dataset).name or dataset}"
    made = datetime.now().astimezone()
    body = [f"<h1>{_text(title)}</h1>",
            f'<p class="soft">The run in {_text(run.resolve().name)}, page written on {made:%Y-%m-%d %H:%M %Z}. Every '
            f"figure is of the test split, unless it says otherwise; no image was selected.</p>",
            _facts(evaluation),
            "<nav>" + " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections) + "</nav>"]
    for name, parts in sections.items():
        body += [f'<section id="{_anchor(name)}">', f"<h2>{name}</h2>", *parts, "</section>"]
    page = ['<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{_text(title)}</title>",
            f"<style>{STYLE}</style>", "</head>", "<body>", *body, "</body>", "</html>", ""]
    with atomic(run / NAME) as file:
        file.write("\n".join(page).encode(errors="replace"))  # a name may hold bytes that are no text
    return run / NAME


# ---------------------------------------------------------------------------------------------------------
# Sections: each returns pieces of HTML


def _facts(evaluation: dict[str, Any] | None) -> str:
    """The most telling figures, large."""
    if not evaluation:
        return ""
    rows = evaluation["rows"]
    copies = rows.get("VQ-VAE reconstructions", {})
    told = [(f"{copies[key]:{form}}", f"{name} of reconstructions") for key, name, form in (
        ("psnr", "PSNR (dB)", ".2f"), ("ssim", "SSIM", ".3f")) if key in copies]
    if {"codes", "codes_used", "perplexity"} <= evaluation.keys():
        told += [(f"{evaluation['codes_used']} of {evaluation['codes']}", "codes in use"),
                 (f"{evaluation['perplexity']:.1f}", "perplexity of the codes")]
    bits = {name: row["bits_per_image"] for name, row in rows.items() if name in STAGES and "bits_per_image" in row}
    if bits:
        best = min(bits, key=bits.get)
        told += [(f"{bits[best]:.1f}", f"bits per image, {best}"),
                 *((f"{rows[best][key]:{COLUMNS[key][1]}}", f"{name}, samples of {best}") for key, name in (
                     ("frechet", "Fréchet distance"), ("class_accuracy", "right class")) if key in rows[best])]
    return '<div class="facts">' + "".join(
        f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for value, name in told) + "</div>"


def _settings(found: dict[str, dict], evaluation: dict[str, Any] | None) -> list[str]:
    parts, details = [], []
    if "vqvae" in found:
        data, config = found["vqvae"]["data"], found["vqvae"]["config"]
        names = data["class_names"]
        classes = f"{len(names)} classes" if names else "no classes"
        kind, side = "grey" if data["channels"] == 1 else "RGB", config["downsample"]
        parts.append(f"<p>{_text(data['dataset'])}: images of {data['height']}x{data['width']} pixels, {kind}, "
                     f"{classes}. A code stands for {side}x{side} pixels and is one of {config['num_codes']}.</p>")
    rows = {}
    for stage, stored in found.items():
        constants = checkpoint.constants(stored)
        rows[_title(stage)] = {
            "weights": f"{sum(tensor.numel() for tensor in stored['model'].values()):,}",
            **{name: constants[name] for name in SHOWN_FIRST if name in constants},
            "training": "not finished" if checkpoint.unfinished(stored) else "finished"}
        details.append(_constants_table(f"all constants of the training of {_title(stage)}", constants))
    if rows:
        parts.append(_table("network", rows, ["weights", *SHOWN_FIRST, "training"]))
    if evaluation and isinstance(evaluation.get("constants"), dict):
        details.append(_constants_table("all constants of evaluate.py", evaluation["constants"]))
    return parts + details


def _training(run: Path, found: dict[str, dict]) -> list[str]:
    parts = [_picture(run / PICTURE, "images of the data set", "Some training images, as the training saw them: of "
                      "every class, where there are classes.", "`train_vqvae.py` and `dataset.py` write it")]
    for stage in STAGES:
        if stage in found or (run / f"{stage}_curves.png").exists():
            parts += [f"<h3>{_title(stage)}</h3>", _picture(
                run / f"{stage}_curves.png", f"curves of the training of {_title(stage)}",
                "Left all epochs, right the later half on a scale of its own. Good: both fall, and the curve of the "
                "validation split stays near that of the training. If it turns upwards, the network overfits.",
                "the training writes it", wide=True)]
    untrained = [_title(stage) for stage in STAGES if stage not in found and not stage.endswith("_coarse")]
    return parts + ([_missing(f"not trained in this run, or left out: {', '.join(untrained)}")] if untrained else [])


def _reconstructions(run: Path) -> list[str]:
    last = max(run.glob("reconstructions/epoch_*.png"), key=lambda path: (len(path.name), path.name),
               default=run / "reconstructions" / "epoch_001.png")
    epoch = last.stem.removeprefix("epoch_").lstrip("0")
    return [_picture(last, "validation images over their reconstructions",
                     f"Validation images, below each its reconstruction after epoch {epoch} of the VQ-VAE. Good: no "
                     f"pair can be told apart. What is lost here no prior can bring back.",
                     "`train_vqvae.py` writes it")]


def _samples(run: Path, evaluation: dict[str, Any] | None, by: str) -> list[str]:
    return [_picture(run / "samples_by_class.png", "new images, by class",
                     f"New images of {_best(evaluation)}. Where the run has classes, above each strip the class that "
                     f"was asked for. Good: each image shows its class, and no two are the same.", by)]


def _measures(run: Path, content: dict[str, Any] | None, stem: str, by: str, seen: str, weights: str) -> list[str]:
    """The table and the figure that a script wrote as `stem`.json and `stem`.png. weights: their directory."""
    if content is None:
        there = (run / f"{stem}.json").exists()
        return [_missing(f"{stem}.json cannot be read: {by} again" if there else f"no {stem}.json: {by}")]
    rows = content["rows"]
    present = [name for name in COLUMNS if any(name in row for row in rows.values())]
    heads = {name: COLUMNS[name][0] + ARROWS[NOTES[name][0]] for name in present}
    cells = {title: {heads[name]: format(row[name], COLUMNS[name][1]) for name in present if name in row}
             for title, row in rows.items()}
    count = content.get("images_per_row")
    constants = content["constants"] if isinstance(content.get("constants"), dict) else {}
    told = ", ".join(f"{name} {constants[name]}" for name in ("TEMPERATURE", "TOP_K", "TOP_P", "GUIDANCE", "FEATURES",
                                                              "SEED") if name in constants)
    told += f"; samples of {content['sampling']}" if content.get("sampling") else ""
    notes = "".join(f"<dt>{_text(COLUMNS[name][0])}</dt><dd>{_text(NOTES[name][1])}"
                    f"{f' ({NOTES[name][0]} is better)' if NOTES[name][0] else ''}</dd>" for name in present)
    parts = [f'<p class="soft">{_text(count)} images a row; {_text(told)}.</p>' if count else "",
             _table("", cells, list(heads.values())), f"<dl>{notes}</dl>"]
    if older := _older(run / f"{stem}.json", weights):
        parts.append(_missing(f"{stem}.json was written before {', '.join(older)}: {by} again to measure what is there "
                              f"now"))
    return parts + [_picture(run / f"{stem}.png", "strips of images, one for each row of the table",
                             f"In each column the same test image, or its class; {seen}.", by, wide=True)]


def _nearest(run: Path, evaluation: dict[str, Any] | None, by: str) -> list[str]:
    return [_picture(run / "nearest.png", "samples over the training images nearest to them",
                     f"Samples of {_best(evaluation)}, below each the training image nearest to it by pixels. Good: "
                     f"alike in kind, and different in detail. Copies would mean that the prior has memorised.", by,
                     wide=True)]


def _codebook(run: Path, evaluation: dict[str, Any] | None, by: str) -> list[str]:
    parts = []
    if evaluation and {"codes", "codes_used", "perplexity"} <= evaluation.keys():
        used, codes = evaluation["codes_used"], evaluation["codes"]
        parts.append(f"<p>{used} of {codes} codes ({used / max(codes, 1):.0%}) occur in the codes of the test split. "
                     f"Their perplexity is {evaluation['perplexity']:.1f}: as many codes in even use would carry the "
                     f"same information.</p>")
    return parts + [_picture(run / "codebook.png", "share of every code, in falling order",
                             "How often every code occurs in the test split, most frequent first. Good: a line that "
                             "stays near the even share for most codes. Collapse is a line that drops to nothing after "
                             "a few.", by, wide=True)]


# ---------------------------------------------------------------------------------------------------------
# Pieces


def _text(value: object) -> str:
    """A value as text that HTML does not take for markup."""
    return html.escape(str(value))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _best(evaluation: dict[str, Any] | None) -> str:
    """Whose samples the pictures of evaluate.py show."""
    name = (evaluation or {}).get("best")
    return name if name == "masked" else f"{name or 'the prior'}, the row of the fewest bits"


def _title(stage: str) -> str:
    return TITLES.get(stage, stage)


def _by(flags: list[str], script: str) -> str:
    """What to type to get what is missing."""
    return f"run `{shlex.join(['python', script, *flags])}`"


def _missing(line: str) -> str:
    """A line that says what is not there; what stands in backticks is typed."""
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", _text(line))
    return f'<p class="missing">{marked}</p>'


def _older(measures: Path, weights: str) -> list[str]:
    """The checkpoints that were written after a file of measures, which does not hold for them."""
    written = measures.stat().st_mtime
    paths = [checkpoint.path_of(weights, stage) for stage in STAGES]
    return [path.name for path in paths if path.is_file() and path.stat().st_mtime > written]


def _picture(path: Path, alt: str, caption: str, where: str, wide: bool = False) -> str:
    """A picture with its caption; or, if it is not there, a line that says so, and where it comes from.

    wide: it holds text, so that a narrow screen scrolls rather than shrinks it.
    """
    name = "/".join(path.parts[-2:]) if path.parent.name == "reconstructions" else path.name
    if not path.is_file():
        return _missing(f"no {name}: {where}")
    try:
        source, width, height = _embedded(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for a damaged file
        return _missing(f"{name} is damaged: {where}")
    kind = ' class="wide"' if wide else ""
    return (f'<figure><div class="scroll" tabindex="0" role="group" aria-label="{_text(alt)}"><img{kind} '
            f'width="{width}" height="{height}" alt="{_text(alt)}" src="{source}"></div>'
            f"<figcaption>{_text(caption)}</figcaption></figure>")


def _embedded(path: Path) -> tuple[str, int, int]:
    """A picture as a data URI, with its width and height in pixels."""
    content, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        picture.load()
        if len(content) > LARGEST:
            picture = picture.convert("RGB")
            picture.thumbnail((WIDEST, picture.height))
            buffer, kind = io.BytesIO(), "jpeg"
            picture.save(buffer, "JPEG", quality=90)
            content = buffer.getvalue()
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", *picture.size


def _table(corner: str, rows: dict[str, dict[str, object]], columns: list[str]) -> str:
    """Rows of cells by column; a row may lack some."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in (corner, *columns))
    lines = "".join(f'<tr><th scope="row">{_text(title)}</th>'
                    + "".join(f"<td>{_text(row.get(name, ''))}</td>" for name in columns) + "</tr>"
                    for title, row in rows.items())
    return (f'<div class="scroll" tabindex="0" role="group" aria-label="table"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>")


def _constants_table(title: str, constants: dict[str, Any]) -> str:
    """A table that a reader opens with a click."""
    lines = "".join(f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
                    for name, value in constants.items())
    return (f'<details><summary>{_text(title)}</summary><div class="scroll"><table class="constants"><tbody>{lines}'
            f"</tbody></table></div></details>")


def _read_rows(path: Path) -> dict[str, Any] | None:
    """What a script reported as JSON: facts, and in "rows" measures by name. None if it is not there or not that."""
    try:
        content = json.loads(path.read_bytes())
        content["rows"] = {title: {name: float(value) for name, value in row.items()}
                           for title, row in content["rows"].items()}
        content |= {name: float(content[name]) for name in ("perplexity",) if name in content}
        content |= {name: int(content[name]) for name in ("codes", "codes_used") if name in content}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return content

"""The parts of an HTML page that needs no other file: text, tables, and pictures inside it."""
import base64
import html
import io
import re
from pathlib import Path

from PIL import Image

from running.files import atomic

LARGEST = 2**21  # bytes of a picture that is embedded as it is; a larger one becomes a JPEG ...
WIDEST = 1600    # ... of so many pixels across
STYLE = """
:root { color-scheme: light dark; --soft: #777; --line: #8885 }
body { margin: auto; max-width: 80rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h2 { margin-top: 3rem; border-top: 1px solid var(--line) }
p, dl, figcaption { max-width: 46rem }
a { color: inherit } nav a { margin-right: 1rem }
.soft, .missing, figcaption, dl { color: var(--soft); font-size: .9rem }
.missing { border-left: 3px solid var(--line); padding-left: .7rem }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto; background: #fff }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; position: sticky; left: 0; background: Canvas }
dt { float: left; clear: left; margin-right: .5rem } dd { margin: 0 }
"""


def write(path: Path, title: str, body: list[str]) -> None:
    """Write a page of these parts. title: as HTML."""
    page = (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-'
            f'width"><title>{title}</title><style>{STYLE}</style></head><body>{" ".join(body)}</body></html>')
    with atomic(path) as file:
        file.write(page.encode(errors="replace"))  # a name may hold bytes that are no text


def text(value: object) -> str:
    """A value as text that HTML does not take for markup."""
    return html.escape(str(value))


def anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def missing(line: str) -> str:
    """A line that says what is not there; what stands in backticks is typed."""
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", text(line))
    return f'<p class="missing">{marked}</p>'


def picture(path: Path, caption: str, where: str) -> str:
    """A picture with its caption; or, if it is not there, a line that says so, and where it comes from."""
    name = "/".join(path.parts[-2:]) if path.parent.name.endswith("reconstructions") else path.name
    if not path.is_file():
        return missing(f"no {name}: {where}")
    try:
        source, width, height = embedded(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for a damaged file
        return missing(f"{name} is damaged: {where}")
    return (f'<figure><img width="{width}" height="{height}" alt="{text(caption.split(".")[0])}" src="{source}">'
            f"<figcaption>{text(caption)}</figcaption></figure>")


def embedded(path: Path) -> tuple[str, int, int]:
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


def table(corner: str, rows: dict[str, dict[str, object]], columns: list[str]) -> str:
    """Rows of cells by column; a row may lack some."""
    head = "".join(f"<th>{text(name)}</th>" for name in (corner, *columns))
    lines = "".join(f"<tr><th>{text(title)}</th>"
                    + "".join(f"<td>{text(row.get(name, ''))}</td>" for name in columns) + "</tr>"
                    for title, row in rows.items())
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'

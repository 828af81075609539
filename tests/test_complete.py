"""complete.py: what is given is kept and nothing else is known, and the same seed completes in the same way."""
import shutil

import numpy as np
import pytest
import torch
from conftest import let_classes_matter
from PIL import Image

import complete
import dataset
from priors import runs, sampler
from running import figures
from training import checkpoint

FEW = ["--num-images", 3, "--num-completions", 2, "--device", "cpu"]


@pytest.fixture
def run(trained, tmp_path):
    for name in ("vqvae.pt", "pixelcnn.pt"):
        shutil.copy(trained / name, tmp_path)
    return tmp_path


def completed(done, run, *flags):
    """The completions of three images, two each, by these flags."""
    done("complete", "--output-dir", run, *FEW, *flags)
    return [(run / f"completion_{i // 2}_{i % 2}.png").read_bytes() for i in range(6)]


@pytest.mark.parametrize("mask, drawn", [
    ("top", ["11111", "11111", "00000", "00000", "00000"]), ("bottom", ["00000"] * 3 + ["11111"] * 2),
    ("left", ["11000"] * 5), ("right", ["00011"] * 5), ("center", ["00000", "01110", "01110", "01110", "00000"]),
    ("border", ["11111", "10001", "10001", "10001", "11111"]),
    ("top", ["111", "111", "000", "000"]), ("right", ["0011", "0011"]),  # even grids are halved
    ("an image", ["111000", "111000", "000000", "000000"])])
def test_masks(tmp_path, mask, drawn):
    expected = torch.tensor([[letter == "1" for letter in row] for row in drawn])
    if mask == "an image":
        picture = Image.new("L", (40, 20), 0)
        picture.paste(255, (0, 0, 20, 10))
        picture.paste(120, (20, 10, 40, 20))  # below half
        picture.save(tmp_path / "mask.png")
        mask = str(tmp_path / "mask.png")
    assert torch.equal(complete.read_mask(mask, *expected.shape, 1), expected)


@pytest.mark.parametrize("side, white, given", [(8, slice(0, 48), range(6)), (8, slice(48, 57), (6, 7)),
                                                (4, slice(52, 57), (13, 14)), (4, slice(0, 50), range(12))])
def test_a_mask_of_images_that_are_no_multiple_of_a_code_gives_no_hidden_pixel(tmp_path, side, white, given):
    pixels = np.zeros((31, 57), np.uint8)
    pixels[:, white] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask = complete.read_mask(str(tmp_path / "mask.png"), 31, 57, side)
    assert mask.shape == (-(-31 // side), -(-57 // side))
    assert all(row.nonzero().flatten().tolist() == list(given) for row in mask)


def test_painting_over_keeps_what_is_given_and_uses_nothing_else():
    images, given = torch.rand(2, 3, 9, 7), torch.zeros(9, 7, dtype=torch.bool)
    given[2:5, 1:4] = True
    painted = complete.paint_over(images, given)
    assert torch.equal(painted[:, :, given], images[:, :, given])
    assert torch.equal(complete.paint_over(torch.where(given, images, torch.rand(2, 3, 9, 7)), given), painted)
    lowest, highest = images[:, :, given].amin(2), images[:, :, given].amax(2)
    assert (painted >= lowest[:, :, None, None] - 1e-5).all() and (painted <= highest[:, :, None, None] + 1e-5).all()
    torch.testing.assert_close(complete.paint_over(torch.full_like(images, 0.3), given), torch.full_like(images, 0.3))


def test_the_given_codes_are_kept(done, run, monkeypatch):
    decoded, known = [], []
    make_sampler = sampler.make_sampler

    def recorded(*args):
        drawer = make_sampler(*args)

        def draw(labels, chance, given, on_row):
            known.append(given)
            decoded.append(drawer(labels, chance, given, on_row))
            return decoded[-1]
        return draw
    monkeypatch.setattr(sampler, "make_sampler", recorded)
    completed(done, run, "--mask", "center")
    codes, given = torch.cat(decoded), torch.cat(known)
    assert codes.shape == (6, 7, 7) and ((given >= 0) == complete.read_mask("center", 28, 28, 4)).all()
    assert torch.equal(codes[given >= 0], given[given >= 0])
    assert torch.equal(given[0], given[1]) and not torch.equal(given[0], given[2])  # an image's two completions
    vqvae = runs.build(checkpoint.load(str(run), "vqvae"))
    with torch.no_grad():
        figures.save_image(vqvae.decode(codes[3:4], 28, 28)[0], run / "again.png")
    assert (run / "again.png").read_bytes() == (run / "completion_1_1.png").read_bytes()


def test_same_seed_same_completions_whatever_the_batch(done, run):
    first = completed(done, run)
    assert len(set(first)) == 6  # the halves that were given differ, and the chance of each completion does
    grid = Image.open(run / "completions.png")
    assert grid.size == (4 * 142 + 2, 3 * 142 + 2)
    assert completed(done, run, "--batch-size", 4) == first != completed(done, run, "--seed", 1)
    coldest = completed(done, run, "--temperature", 0)
    assert coldest[0] == coldest[1] != coldest[2]


def test_hidden_pixels_have_no_say(done, run, monkeypatch):
    load = dataset.load

    def changed_below(*args):
        data = load(*args)
        images = data.test.images.clone()
        images[:, :, 12:] = 255 - images[:, :, 12:]  # below the three rows of codes that are given
        return data._replace(test=data.test._replace(images=images))
    outputs = []
    for loads in (load, changed_below):
        monkeypatch.setattr(dataset, "load", loads)
        outputs.append(completed(done, run))
    assert outputs[0] == outputs[1]


def test_the_class_can_be_given_with_or_without_guidance(done, run):
    """s = 0 is the draw without a class, s = 1 the draw with it, and another s differs from both."""
    let_classes_matter(run)

    def drawn(*more):
        return completed(done, run, "--temperature", 2, "--top-p", 0.9, *more)

    without, given = drawn(), drawn("--class-given", "--guidance", 1)
    assert given != without
    assert drawn("--class-given", "--guidance", 0) == without
    assert drawn("--class-given") == drawn("--class-given", "--guidance", 1.25)
    guided = drawn("--class-given", "--guidance", 3)
    assert drawn("--class-given", "--guidance", 3, "--batch-size", 4) == guided
    assert guided not in (without, given)


def test_a_grid_shows_the_first_images_and_says_so(script, run, monkeypatch):
    flags = ["--output-dir", run, *FEW]
    assert " of the first " not in script("complete", *flags).out
    whole = Image.open(run / "completions.png")
    monkeypatch.setattr(figures, "GRID_IMAGES", 9)
    assert script("complete", *flags).out.endswith("completions.png of the first 2\n")
    part, expected = Image.open(run / "completions.png"), whole.crop((0, 0, whole.width, 142 * 2 + 2))
    assert part.size == expected.size and part.tobytes() == expected.tobytes()
    assert (run / "completion_2_1.png").exists()


@pytest.mark.parametrize("colour, amount", [(0, "none"), (255, "all")])
def test_a_mask_of_all_or_nothing_is_one_line(script, run, colour, amount):
    Image.new("L", (30, 30), colour).save(run / "mask.png")
    outcome = script("complete", "--output-dir", run, "--mask", run / "mask.png")
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert f"MASK (--mask): '{run}/mask.png' gives {amount} of the 7x7 codes" in outcome.err

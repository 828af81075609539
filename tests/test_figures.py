"""Grids of images and plots, from the pixels of the files."""
import numpy as np
import pytest
import torch
from PIL import Image

from running import figures


def read(path):
    """The pixels of a file in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(path))).float() / 255


def test_one_image_keeps_its_size_and_values(tmp_path):
    image = torch.linspace(-0.2, 1.2, 12).view(1, 3, 4)
    figures.save_image(image, tmp_path / "image.png")
    torch.testing.assert_close(read(tmp_path / "image.png"), image[0].clamp(0, 1), atol=0.5 / 255, rtol=0)
    figures.save_image(image.expand(3, 3, 4), tmp_path / "colour.png")
    assert read(tmp_path / "colour.png").shape == (3, 4, 3)


@pytest.mark.parametrize("count, columns, rows, across", [
    (5, 2, 3, 2), (3, 10, 1, 3), (1, 0, 1, 1), (5, 0, 1, 5), (12, 0, 3, 4), (11, 0, 3, 4)])
def test_a_grid_is_filled_row_by_row(tmp_path, count, columns, rows, across):
    """Nearly square where no number of columns says otherwise, with full rows if that can be, else white places."""
    values = torch.linspace(0.1, 0.9, count)
    figures.save_grid(values.view(-1, 1, 1, 1).expand(-1, 1, 520, 520), tmp_path / "grid.png", columns)
    sheet = read(tmp_path / "grid.png")
    assert sheet.shape == (rows * 522 + 2, across * 522 + 2)
    middles = sheet[262::522, 262::522].flatten()
    torch.testing.assert_close(middles[:count], values, atol=0.01, rtol=0)
    assert (middles[count:] == 1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_columns_carry_their_names(tmp_path, channels):
    images = torch.rand(6, channels, 60, 60)
    figures.save_grid(images, tmp_path / "plain.png", 3)
    figures.save_grid(images, tmp_path / "named.png", names=["a", "a name that is longer than its column", "c\nd"])
    plain, named = read(tmp_path / "plain.png"), read(tmp_path / "named.png")
    assert torch.equal(named[figures.LINE:], plain)
    assert all((part < 0.5).any() for part in named[:figures.LINE].tensor_split(3, dim=1))


@pytest.mark.parametrize("height, width, factor", [(28, 28, 2), (56, 56, 1), (1, 30, 56), (20, 230, 1), (20, 223, 3)])
def test_small_images_are_enlarged_by_a_whole_factor(tmp_path, height, width, factor):
    figures.save_grid(torch.zeros(30, 1, height, width), tmp_path / "grid.png", columns=1)
    assert read(tmp_path / "grid.png").shape == (30 * (height * factor + 2) + 2, width * factor + 4)
    figures.save_grid(torch.zeros(1, 1, height, width), tmp_path / "grid.png")
    assert max(read(tmp_path / "grid.png").shape) >= 512


def test_copies_stand_below_their_originals_in_every_row(tmp_path):
    images = torch.linspace(0.1, 0.7, 7).view(7, 1, 1, 1).expand(7, 1, 130, 130)
    figures.save_pairs(images, images + 0.2, tmp_path / "pairs.png", columns=4)
    sheet = read(tmp_path / "pairs.png")
    middles = sheet[67::132, 67::132]
    assert middles.shape == (4, 4)
    torch.testing.assert_close(middles[::2].flatten()[:7], images[:, 0, 0, 0], atol=0.01, rtol=0)
    torch.testing.assert_close(middles[1::2].flatten()[:7], images[:, 0, 0, 0] + 0.2, atol=0.01, rtol=0)


def test_strips_are_as_wide_whatever_their_number(tmp_path):
    for count in (1, 4):
        figures.save_strips({f"row {i}\nof {count}": torch.rand(20, 1, 8, 8) for i in range(count)}, "title",
                            tmp_path / f"{count}.png")
    sizes = [Image.open(tmp_path / f"{count}.png").size for count in (1, 4)]
    width = round((figures.LABEL_WIDTH + figures.STRIP_WIDTH + figures.STRIP_GAP) * figures.DPI)
    assert sizes[0][0] == sizes[1][0] == width and sizes[0][1] < sizes[1][1] < 4 * sizes[0][1]

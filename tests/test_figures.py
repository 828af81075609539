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


@pytest.mark.parametrize("count, columns, rows, across", [(5, 0, 2, 3), (5, 2, 3, 2), (3, 10, 1, 3), (1, 0, 1, 1)])
def test_a_grid_is_filled_row_by_row(tmp_path, count, columns, rows, across):
    values = torch.linspace(0.6, 1, count)
    figures.save_grid(values.view(-1, 1, 1, 1).expand(-1, 1, 60, 60), tmp_path / "grid.png", columns)
    sheet = read(tmp_path / "grid.png")
    assert sheet.shape == (rows * 62 + 2, across * 62 + 2)
    middles = sheet[32::62, 32::62].flatten()
    torch.testing.assert_close(middles[:count], values, atol=0.01, rtol=0)
    torch.testing.assert_close(middles[count:], torch.full_like(middles[count:], figures.GREY), atol=0.01, rtol=0)


@pytest.mark.parametrize("height, width, factor", [(28, 28, 2), (56, 56, 1), (1, 30, 56), (20, 230, 1), (20, 223, 3)])
def test_small_images_are_enlarged_by_a_whole_factor(tmp_path, height, width, factor):
    figures.save_grid(torch.zeros(1, 1, height, width), tmp_path / "grid.png")
    assert read(tmp_path / "grid.png").shape == (height * factor + 2 * figures.GAP, width * factor + 2 * figures.GAP)


def test_copies_stand_below_their_originals_in_every_row(tmp_path):
    images = torch.linspace(0.1, 0.7, 7).view(7, 1, 1, 1).expand(7, 1, 60, 60)
    figures.save_pairs(images, images + 0.2, tmp_path / "pairs.png", columns=4)
    sheet = read(tmp_path / "pairs.png")
    middles = sheet[32::62, 32::62]
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

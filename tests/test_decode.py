"""One file: every format, mode, depth, orientation and kind of damage is read rightly or refused with one line."""
import io
import os
import random
import struct
import zlib

import nibabel
import numpy as np
import pytest
from images import jpeg, nifti, noise, one, write
from PIL import Image

from loading import decode, wide
from loading.reading import Reading
from running.cli import UserError

# ---- formats and modes


GREY, COLOUR = noise(17, 31), noise(17, 31, 3)
SMOOTH = np.linspace(0, 255, 17 * 31).astype(np.uint8).reshape(17, 31)  # survives lossy formats


@pytest.mark.parametrize("name, options, loss", [
    ("a.png", {}, 0), ("a.bmp", {}, 0), ("a.gif", {}, 0), ("a.tif", {}, 0), ("a.tiff", {"compression": "tiff_lzw"}, 0),
    ("A.PNG", {}, 0), ("a.webp", {"lossless": True}, 0), ("a.jpg", {"quality": 95}, 4),
    ("a.jpeg", {"progressive": True}, 8),
])
def test_formats(tmp_path, name, options, loss):
    pixels = SMOOTH if loss else GREY
    image = one(write(tmp_path / name, pixels, **options))
    assert image.shape[:2] == pixels.shape
    assert abs(image - pixels[:, :, None].astype(int)).max() <= loss
    if name.lower()[-3:] not in ("gif", "ebp", "jpg", "peg"):  # of more than 256 colours, and without loss
        assert np.array_equal(one(write(tmp_path / ("c" + name), COLOUR, **options)), COLOUR)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def over_white(colour, alpha):
    return np.rint(colour * (alpha / 255) + 255 * (1 - alpha / 255))


def test_modes(tmp_path):
    alpha = noise(17, 31, seed=5)
    clear = np.dstack([COLOUR, alpha])
    wide = np.random.default_rng(0).integers(0, 65536, (17, 31), np.uint16)
    plain = Image.fromarray(COLOUR).quantize(16)
    palette = plain.copy()
    palette.info["transparency"] = 3
    shown = np.asarray(palette.convert("RGB")).copy()
    shown[np.asarray(palette) == 3] = 255
    real = np.linspace(-3, 7, 17 * 31, dtype=np.float32).reshape(17, 31)
    cases = {
        "1.png": (Image.fromarray(GREY > 127), (GREY > 127)[:, :, None] * 255, 0),
        "L.png": (GREY, GREY[:, :, None], 0),
        "P grey.gif": (Image.fromarray(GREY).convert("P"), GREY[:, :, None], 0),
        "P.png": (plain, np.asarray(plain.convert("RGB")), 0),
        "P clear.png": (palette, shown, 0),
        "RGB.png": (COLOUR, COLOUR, 0),
        "RGBA.png": (clear, over_white(COLOUR, alpha[:, :, None]), 1),
        "LA.png": (Image.fromarray(np.dstack([GREY, alpha])), over_white(GREY, alpha)[:, :, None], 1),
        "16 bits.png": (wide, np.rint(wide / 257)[:, :, None], 0),
        "16 bits.tif": (wide, np.rint(wide / 257)[:, :, None], 0),
        "float.tif": (real, np.linspace(-1.3, 256.3, 17 * 31).clip(0, 255).reshape(17, 31, 1), 1),
        "CMYK.tif": (Image.fromarray(COLOUR).convert("CMYK"), COLOUR, 1),
        "CMYK.jpg": (Image.new("CMYK", (31, 17), (0, 255, 255, 0)), np.full((17, 31, 3), (255, 0, 0)), 3),
    }
    for name, (image, expected, loss) in cases.items():
        read = one(write(tmp_path / name, image), value_range="0 65535" if "16" in name else "auto")
        assert read.shape == expected.shape, name
        assert abs(read - expected).max() <= loss, name


def test_sixteen_bits_that_are_transparent_or_turned_around(tmp_path):
    wide = np.array([[0x1000, 0xffff, 0]], np.uint16)
    write(tmp_path / "a.png", wide)
    content = bytearray((tmp_path / "a.png").read_bytes())
    place = content.index(b"IDAT") - 4
    content[place:place] = chunk(b"tRNS", struct.pack(">H", 0x1000))
    (tmp_path / "a.png").write_bytes(content)
    assert one(tmp_path / "a.png")[0, :, 0].tolist() == [255, 255, 0]
    write(tmp_path / "a.tif", wide, tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[262] == 0
    assert one(tmp_path / "a.tif")[0, :, 0].tolist() == [239, 0, 255]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation(tmp_path, suffix):
    pixels = np.zeros((16, 40), np.uint8)
    pixels[:8, :8] = 255                       # the corner at the upper left, which a turn to the right puts
    exif = Image.Exif()                        # at the upper right
    exif[0x0112] = 6
    image = one(write(tmp_path / f"a{suffix}", pixels, exif=exif), channels=1)
    assert image.shape == (40, 16, 1) and image[3, 12, 0] > 200 and image[3, 3, 0] < 50
    small = one(tmp_path / f"a{suffix}", channels=1, image_size="20x8")
    assert small.shape == (20, 8, 1) and small[1, 6, 0] > 200


JPEGS = [jpeg(height, width, channels, **options)
         for height, width in ((1, 1), (17, 31), (1, 500)) for channels in (1, 3) for options in (
             {}, {"quality": 20}, {"quality": 95, "subsampling": 0}, {"subsampling": 1}, {"optimize": True},
             {"progressive": True}, {"restart_marker_blocks": 1}, {"comment": b"x", "icc_profile": b"y" * 99})]


def pillows(content):
    return np.atleast_3d(np.asarray(next(decode.pictures(io.BytesIO(content), None)[2])))


def test_plain_jpegs_have_the_pixels_that_pillow_gives():
    for content in JPEGS:
        assert np.array_equal(decode.plain_jpeg(content, Reading()), pillows(content))


def test_damaged_jpegs_are_left_to_pillow_or_have_its_pixels():
    chance, left = random.Random(0), 0
    for content in JPEGS * 10:
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(content)):]
        pixels = decode.plain_jpeg(bytes(damaged), Reading())
        left += pixels is None
        if pixels is not None:
            with decode.strictly():
                assert np.array_equal(pixels, pillows(damaged))
    assert 0.2 * 10 * len(JPEGS) < left < 0.9 * 10 * len(JPEGS)


def test_a_sampling_that_simplejpeg_does_not_know_is_left_to_pillow(tmp_path):
    rotated = bytearray(jpeg(33, 47, 3, subsampling=1))
    frame = rotated.index(b"\xff\xc0")
    assert rotated[frame + 11] == 0x21
    rotated[frame + 11] = 0x14                 # 4:4:1, as a rotation of 4:1:1 leaves it; its pixels are no picture here
    assert decode.plain_jpeg(bytes(rotated), Reading()) is None
    (tmp_path / "a.jpg").write_bytes(rotated)
    assert one(tmp_path / "a.jpg").shape == (33, 47, 3)


def test_jpegs_that_are_not_plain_are_left_to_pillow(monkeypatch):
    colour, exif = jpeg(17, 31, 3), Image.Exif()
    exif[0x0112] = 6
    cmyk = io.BytesIO()
    Image.new("CMYK", (31, 17)).save(cmyk, "JPEG")
    assert decode.plain_jpeg(colour, Reading(channels=3)) is not None
    for content, reading in ((jpeg(17, 31, 3, exif=exif), Reading()), (jpeg(17, 31, 3, keep_rgb=True), Reading()),
                             (cmyk.getvalue(), Reading()), (colour, Reading(channels=1)),
                             (colour, Reading(image_size="8")), (b"\x89PNG\r\n\x1a\n", Reading()),
                             (jpeg(400, 400, 3, quality=100)[:decode.WHOLE], Reading())):  # all that is read at once
        assert decode.plain_jpeg(content, reading) is None
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert decode.plain_jpeg(colour, Reading()) is None


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(noise(9, 9, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(one(tmp_path / "a.gif")[:, :, 0], noise(9, 9, seed=0))


def test_the_content_counts_and_not_the_suffix(tmp_path):
    write(tmp_path / "a.png", GREY)
    os.rename(tmp_path / "a.png", tmp_path / "a.jpg")
    assert np.array_equal(one(tmp_path / "a.jpg")[:, :, 0], GREY)


# ---- NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_nifti_slices_and_volumes(tmp_path, name):
    volume = np.random.default_rng(0).integers(0, 1000, (5, 7, 4)).astype(np.int16)
    exact = {"nifti_low": 0.0, "nifti_high": 100.0}
    nifti(tmp_path / name, volume)
    low, high = volume.min(), volume.max()
    scaled = np.rint((volume - low) * (255 / (high - low)))
    for axis, height, width in ((0, 2, 1), (1, 2, 0), (2, 1, 0)):
        images = decode.read(str(tmp_path / name), Reading(nifti_axis=axis, **exact))
        assert np.array_equal(images[:, 0], scaled[::-1, ::-1, ::-1].transpose(axis, height, width)[::-1])
    images = decode.read(str(tmp_path / name), Reading(nifti_scale="slice", **exact))
    assert all((image.min(), image.max()) == (0, 255) for image in images)
    for shape in ((5, 28), (5, 28, 1), (5, 28, 1, 1)):
        nifti(tmp_path / name, volume.reshape(shape))
        assert np.array_equal(one(tmp_path / name, **exact)[:, :, 0], scaled.reshape(5, 28))


def test_nifti_percentiles_nan_and_infinities(tmp_path):
    values = np.arange(100, dtype=np.float32).reshape(10, 10)
    values[0, :3] = np.nan, np.inf, -np.inf
    image = one(nifti(tmp_path / "a.nii", values), nifti_low=10.0, nifti_high=90.0)[:, :, 0]
    low, high = np.percentile(np.arange(3, 100), (10, 90))
    assert tuple(image[0, :3]) == (0, 255, 0)
    assert np.array_equal(image.flat[3:], np.rint(((np.arange(3, 100) - low) / (high - low) * 255).clip(0, 255)))
    for values in (np.full((4, 4), np.nan), np.full((4, 4), 7.0), np.full((4, 4), np.inf)):
        assert set(one(nifti(tmp_path / "b.nii", values)).flat) <= {0, 255}
    spot = np.zeros((40, 40))
    spot[3, 4] = 1.0                           # above no percentile but the hundredth
    assert one(nifti(tmp_path / "c.nii", spot)).argmax() == 3 * 40 + 4
    assert one(nifti(tmp_path / "d.nii", np.array([[0.0, 1e300], [1e300, 0.0]]))).max() == 255


@pytest.mark.parametrize("values, word", [
    (np.zeros((4, 4, 2, 2), np.float32), "neither a slice nor a volume"), (np.zeros(5, np.float32), "neither"),
    (np.zeros((4, 4), np.complex64), "not real numbers"),
    (np.zeros((4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "not real numbers"),
])
def test_nifti_that_is_no_image(tmp_path, values, word):
    with pytest.raises(UserError, match=word):
        decode.read(str(nifti(tmp_path / "a.nii", values)), Reading())


def test_nifti_that_claims_to_be_huge(tmp_path):
    nifti(tmp_path / "a.nii", np.zeros((4, 4, 4), np.uint8))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[40:48] = struct.pack("<4h", 3, 30000, 30000, 30000)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(UserError, match="30000x30000x30000"):
        decode.read(str(tmp_path / "a.nii"), Reading())


# ---- damage


def png_header(height, width):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def jpeg_header(height, width):
    content = jpeg(8, 8, 3)
    return content.replace(struct.pack(">HH", 8, 8), struct.pack(">HH", height, width), 1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.nii", "a.nii.gz"])
@pytest.mark.parametrize("content, word", [
    (b"", "empty"), (b"not an image at all", "known format"), (png_header(20_000, 20_000), "decompression bomb"),
    (png_header(10_000, 10_000), "decompression bomb"), (jpeg_header(20_000, 20_000), "decompression bomb"),
    (png_header(200, 200), ""), (b"\x1f\x8b" + b"\0" * 30, ""),
])
def test_broken_content_is_refused_in_one_line(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot be decoded: .+") as error:
        decode.read(str(tmp_path / name), Reading())
    assert "\n" not in str(error.value)
    if ".nii" not in name:
        assert word in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tif", ".webp", ".nii", ".nii.gz"])
def test_truncated_anywhere_and_flipped_bits(tmp_path, suffix, capfd):
    path = tmp_path / f"a{suffix}"
    (nifti if ".nii" in suffix else write)(path, GREY)
    whole, data = one(path), path.read_bytes()
    chance = random.Random(0)
    for cut in [1, 2, *(chance.randrange(len(data)) for _ in range(30)), len(data) - 1]:
        path.write_bytes(data[:cut])
        try:
            assert np.array_equal(one(path), whole)  # what is missing were no pixels
        except UserError as error:
            assert "\n" not in str(error)
    for _ in range(30):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            decode.read(str(path), Reading())
        except UserError as error:
            assert "\n" not in str(error)
    assert "Traceback" not in capfd.readouterr().err


# ---- samples that are not plain 8 bits, and orientation


def png16(samples):
    """A 16-bit PNG of samples (H, W) or (H, W, C): Pillow does not write every kind."""
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pngs_of_16_bits_are_read_in_full(tmp_path, channels):
    samples = np.random.default_rng(0).integers(0, 4096, (9, 11, channels)).astype(np.uint16)
    if channels in (2, 4):
        samples[:, :, -1] = np.random.default_rng(1).integers(0, 65536, (9, 11))
    (tmp_path / "a.png").write_bytes(png16(samples[:, :, 0] if channels == 1 else samples))
    colours = np.rint(samples[:, :, :channels if channels in (1, 3) else -1] / 4095 * 255)
    if channels in (2, 4):
        colours = np.rint(over_white(colours, samples[:, :, -1:] / 65535 * 255))
    assert abs(one(tmp_path / "a.png", value_range="0 4095") - colours).max() <= (channels in (2, 4))
    if channels in (1, 3):                     # by itself: the percentiles of its own values
        low, high = np.percentile(samples, (0.5, 99.5))
        expected = np.rint(((samples - low) / (high - low)).clip(0, 1) * 255)
        assert np.array_equal(one(tmp_path / "a.png"), expected)


def tiff(path, values, order="<", photometric=1):
    """A TIFF of one strip, written here: Pillow does not write every kind of sample."""
    kind, channels = {"u": 1, "i": 2, "f": 3}[values.dtype.kind], 1 if values.ndim == 2 else values.shape[2]
    height, width, bits = *values.shape[:2], 8 * values.dtype.itemsize
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric if channels == 1 else 2), (273, 0),
            (277, channels), (278, height), (279, values.nbytes), (339, kind)]
    end = 8 + 2 + 12 * len(tags) + 4  # there the bits of three channels, and then the pixels
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    for number, value in tags:
        if number == 258 and channels == 3:
            head += struct.pack(order + "HHII", number, 3, 3, end)
        else:
            head += struct.pack(order + "HHII", number, 4, 1, end + 6 if number == 273 else value)
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(head + struct.pack(order + "I3H", 0, bits, bits, bits) + data)
    return path


@pytest.mark.parametrize("kind, low, high, order", [
    ("u2", 0, 4095, "<"), ("u2", 100, 65535, ">"), ("i2", -1024, 3071, "<"), ("i2", -1024, 3071, ">"),
    ("u4", 0, 4e9, "<"), ("i4", -2e9, 2e9, "<"), ("i4", -2e9, 2e9, ">"), ("f4", -0.5, 1.5, "<"), ("f4", 0, 1e9, ">"),
])
def test_tiffs_of_every_type(tmp_path, kind, low, high, order):
    values = np.linspace(low, high, 60).reshape(6, 10).astype(kind)
    expected = np.rint((values.astype(float) - low) / (high - low) * 255)
    path = tiff(tmp_path / "a.tif", values, order=order)
    assert abs(one(path, value_range=f"{low} {high}")[:, :, 0] - expected).max() <= 1
    assert abs(one(path, nifti_low=0.0, nifti_high=100.0)[:, :, 0] - expected).max() <= 1
    counted = wide.FirstPass(None)
    assert decode.decode(str(path), Reading(), first=counted)[0] is None
    ends = wide.binned_ends(counted.counts, Reading(nifti_low=0.0, nifti_high=100.0))
    assert ends == pytest.approx((low, high), abs=1e-3 * (high - low))


def test_tiffs_of_16_bit_colour_and_of_kinds_that_are_refused(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (6, 10, 3)).astype(np.uint16)
    for order in "<>":
        path = tiff(tmp_path / "a.tif", values, order=order)
        assert np.array_equal(one(path, value_range="0 4095"), np.rint(values / 4095 * 255))
    for kind in ("i1", "f8"):
        with pytest.raises(UserError, match="cannot be read in full|known format"):
            one(tiff(tmp_path / "b.tif", np.arange(16).reshape(4, 4).astype(kind)))
    dark = np.array([[0, 1000, 4095]], np.uint16)
    assert one(tiff(tmp_path / "c.tif", dark, photometric=0), value_range="0 4095")[0, :, 0].tolist() == [255, 193, 0]


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_every_page_of_a_tiff_is_an_image(tmp_path, kind):
    pages = np.random.default_rng(0).integers(0, 250, (20, 5, 7)).astype(kind)
    first, *others = map(Image.fromarray, pages)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[*others, Image.fromarray(np.zeros((2, 2), np.uint8))])
    images = decode.read(str(tmp_path / "a.tif"), Reading(value_range="0 255"))
    assert np.array_equal(images[:, 0], pages)
    images = decode.read(str(tmp_path / "a.tif"), Reading(value_range="0 255", image_size="10x14"))
    assert images.shape == (20, 1, 10, 14)


def test_bins_keep_the_order_and_their_values_are_near():
    values = np.concatenate([np.arange(-4096, 4097), np.random.default_rng(0).normal(0, 1e6, 1000), [1e300, -1e300]])
    numbers = wide.bins(np.sort(values))
    assert (np.diff(numbers.astype(np.int64)) >= 0).all() and numbers.max() < 2**wide.BIN_BITS
    back = wide.bin_values(wide.bins(values))
    assert np.array_equal(back[:8193], values[:8193])
    assert (abs(back[:-2] - values[:-2]) <= 0.0005 * abs(values[:-2])).all()


@pytest.mark.parametrize("scale", ["slice", "volume"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_has_the_same_pixels_however_it_is_stored(tmp_path, axis, scale):
    volume = np.random.default_rng(0).integers(0, 1000, (5, 7, 4)).astype(np.int16)  # right, anterior, superior
    seen = []
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)):
        for signs in ((1, 1, 1), (-1, -1, 1), (1, -1, -1)):
            stored, affine = volume.transpose(axes), np.zeros((4, 4))
            for position, (target, sign) in enumerate(zip(axes, signs)):
                stored = np.flip(stored, position) if sign < 0 else stored
                affine[target, position] = sign * (1 + position)
            affine[3, 3] = 1
            nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "a.nii")
            seen.append(decode.read(str(tmp_path / "a.nii"), Reading(nifti_axis=axis, nifti_scale=scale)))
    assert all(np.array_equal(seen[0], images) for images in seen)


def test_slices_are_upright_with_the_left_of_the_patient_on_the_right(tmp_path):
    volume = np.zeros((5, 7, 9), np.int16)     # from left to right, back to front, bottom to top: canonical, RAS+
    volume[0], volume[:, -1], volume[:, :, -1] = 100, 150, 200  # the patient's left; front; top
    nifti(tmp_path / "a.nii", volume)
    exact = {"nifti_low": 0.0, "nifti_high": 100.0}
    sagittal, coronal, axial = (decode.read(str(tmp_path / "a.nii"), Reading(nifti_axis=axis, **exact))[:, 0]
                                for axis in range(3))
    left, front, top = (round(value / 200 * 255) for value in (100, 150, 200))
    assert axial.shape == (9, 7, 5) and (axial[4, 0] == front).all() and (axial[4, 1:, -1] == left).all()
    assert coronal.shape == (7, 9, 5) and (coronal[3, 0] == top).all() and (coronal[3, 1:, -1] == left).all()
    assert sagittal.shape == (5, 9, 7) and (sagittal[2, 0] == top).all() and (sagittal[2, 1:, 0] == front).all()
    assert not axial[4, 1:, :-1].any() and not coronal[3, 1:, :-1].any() and not sagittal[2, 1:, 1:].any()


@pytest.mark.parametrize("scale", ["volume", "slice", "folder"])
def test_a_range_given_by_hand_is_that_of_all_volumes(tmp_path, scale):
    values = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 4)).astype(np.int16)
    path = nifti(tmp_path / "ct.nii", values)
    window = decode.read(str(path), Reading(nifti_scale=scale, value_range="-160 240")).numpy()
    own = decode.read(str(path), Reading(nifti_scale=scale)).numpy()
    expected = np.rint(((values + 160) / 400).clip(0, 1) * 255)
    assert sorted(window.ravel()) == sorted(expected.ravel()) and not np.array_equal(window, own)


@pytest.mark.parametrize("suffix", [".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".jp2", ".ico", ".avif", ".heic"])
def test_other_formats_of_pillow(tmp_path, suffix):
    """Each as Pillow saves it, nearly to the value where it is lossy; the content decides where the suffix is wrong."""
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif suffix == ".avif" and "AVIF" not in decode.FORMATS:
        pytest.skip("this Pillow has no AVIF")
    rows, columns = np.mgrid[:24, :32]
    grey = (4 * (rows + columns)).astype(np.uint8)
    pixels = {".pbm": grey > 99, ".pgm": grey}.get(suffix, np.stack([grey, grey, grey[::-1]], 2))
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, **{".ico": {"sizes": [(32, 24)]}, ".avif": {"quality": 100},
                                          ".heic": {"quality": 100}}.get(suffix, {}))
    pixels = pixels.astype(int) * (255 if suffix == ".pbm" else 1)
    places = [path] if suffix in (".tga", ".heic") else [path, path.rename(tmp_path / "b.png")]
    images = decode.read(str(places[-1]), Reading())[0].permute(1, 2, 0).numpy().squeeze()
    assert images.shape == pixels.shape and abs(images - pixels).max() <= (8 if suffix in (".avif", ".heic") else 0)


def test_wide_values_of_other_formats_are_not_cut(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (24, 32))
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "a.pgm")
    images = decode.read(str(tmp_path / "a.pgm"), Reading(value_range="0 65535"))
    assert np.array_equal(images[0, 0], np.rint(values / 257))

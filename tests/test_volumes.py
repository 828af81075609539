"""loading/volumes.py: DICOM files against known pixels, alone and as a folder. NIfTI is in tests/test_decode.py."""
import numpy as np
import pytest
import torch

import dataset
from loading import decode
from loading.reading import Reading
from running.cli import UserError

pydicom = pytest.importorskip("pydicom")
RNG = np.random.default_rng(0)


def write(path, pixels, study="1.2.3", bits=None, photometric="MONOCHROME2", **more):
    """A DICOM file of pixels (frames, H, W), (H, W) or (H, W, 3), uncompressed."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
    content, content.file_meta = (made := Dataset()), FileMetaDataset()
    content.file_meta.TransferSyntaxUID, content.file_meta.MediaStorageSOPClassUID = (
        ExplicitVRLittleEndian, CTImageStorage)
    content.file_meta.MediaStorageSOPInstanceUID = content.SOPInstanceUID = generate_uid()
    content.SOPClassUID, content.StudyInstanceUID = CTImageStorage, study
    colour = photometric == "RGB"
    content.Rows, content.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if pixels.ndim == 3 and not colour:
        content.NumberOfFrames = len(pixels)
    content.SamplesPerPixel, content.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        content.PlanarConfiguration = 0
    content.BitsAllocated = 8 * pixels.dtype.itemsize
    content.BitsStored = bits or content.BitsAllocated
    content.HighBit, content.PixelRepresentation = content.BitsStored - 1, int(pixels.dtype.kind == "i")
    for name, value in more.items():
        setattr(content, name, value)
    content.PixelData = pixels.tobytes()
    made.save_as(path, enforce_file_format=True)
    return path


def scaled(values, low, high):
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.dcm", "IM_0001", "1.2.840.10008"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_12_bits_with_rescale_against_known_pixels(tmp_path, name, photometric):
    pixels = RNG.integers(0, 4096, (3, 20, 24), dtype=np.uint16)
    path = write(tmp_path / name, pixels, bits=12, photometric=photometric, RescaleSlope=2, RescaleIntercept=-1024)
    images = decode.read(str(path), Reading(value_range="-160 240")).numpy()
    expected = scaled(pixels * 2.0 - 1024, -160, 240)
    assert np.array_equal(images[:, 0], 255 - expected if photometric == "MONOCHROME1" else expected)
    whole = decode.read(str(path), Reading(nifti_low=0.0, nifti_high=100.0)).numpy()[:, 0]
    assert whole.min() == 0 and whole.max() == 255


def test_8_bits_stay_and_signed_and_colour_are_read(tmp_path):
    grey = RNG.integers(0, 256, (20, 24), dtype=np.uint8)
    assert np.array_equal(decode.read(str(write(tmp_path / "a.dcm", grey)), Reading())[0, 0], grey)
    inverted = write(tmp_path / "b.dcm", grey, photometric="MONOCHROME1")
    assert np.array_equal(decode.read(str(inverted), Reading())[0, 0], 255 - grey)
    colour = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    path = write(tmp_path / "c.dcm", colour, photometric="RGB")
    assert np.array_equal(decode.read(str(path), Reading())[0].permute(1, 2, 0), colour)
    signed = RNG.integers(-2000, 2000, (20, 24), dtype=np.int16)
    path = write(tmp_path / "d.dcm", signed)
    assert np.array_equal(decode.read(str(path), Reading(value_range="-1000 1000"))[0, 0], scaled(signed, -1000, 1000))


def test_a_study_is_on_one_side_of_a_split(tmp_path):
    """Slices of twelve studies, mixed in one folder, are told apart by what the files state; all share one range."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(60):
        values = np.full((16, 16), 1 + number % 12, np.uint16)
        values[0] = 0, *range(1, 13), 0, 0, 0  # so that all have the same range
        write(images / f"{(number * 7) % 60}.dcm", values, study=f"1.2.{number % 12}", bits=12)
    data = dataset.load(str(images), str(tmp_path / "data"), 0, Reading(nifti_low=0.0, nifti_high=100.0))
    seen = [set(split.images[:, 0, 8, 8].tolist()) for split in data[:3]]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 12 and all(seen)
    assert torch.cat([split.images for split in data[:3]]).shape == (60, 1, 16, 16) and data.class_names == []


def test_what_is_no_image_is_one_line(tmp_path):
    write(tmp_path / "a.dcm", RNG.integers(0, 9, (4, 4), dtype=np.uint8))
    content = (tmp_path / "a.dcm").read_bytes()
    for broken in (content[:200], content[:-5], b"", b"no DICOM at all"):
        (tmp_path / "b.dcm").write_bytes(broken)
        with pytest.raises(UserError, match="cannot be decoded"):
            decode.read(str(tmp_path / "b.dcm"), Reading())


def test_without_pydicom_the_line_names_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.dcm", RNG.integers(0, 9, (4, 4), dtype=np.uint8))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UserError, match="pip install pydicom"):
        decode.read(str(path), Reading())

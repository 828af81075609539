"""Volumes of medical images: NIfTI by nibabel, cut into slices, and DICOM by pydicom, an image for every frame."""
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from loading.reading import Reading, Shape
from loading.wide import Wide, ends

NIFTI = (".nii", ".nii.gz")
DICOM = (".dcm", ".dicom")  # and files without a suffix that are DICOM by their content
MAX_VOXELS = 2**29  # of a file
GREY = ("MONOCHROME1", "MONOCHROME2")  # in the first one the lowest value is white


def nifti_slices(path: str, reading: Reading) -> tuple[Shape, bool, Iterator[Wide]]:
    """What a NIfTI file holds, whether its values still need a range, and its slices.

    A volume is turned to the closest canonical orientation (axis 0 from left to right, 1 from back to front, 2 from
    bottom to top) and cut along nifti_axis. Rows and columns then run against the two other axes, the radiological
    convention: head or front of the patient above, the patient's left on the right. A 2D file is shown as it lies.
    """
    import nibabel
    volume = nibabel.load(path)
    full = volume.shape
    while len(full) > 2 and full[-1] == 1:
        full = full[:-1]
    if len(full) not in (2, 3) or 0 in full:
        raise ValueError(f"its shape {volume.shape} is neither a slice nor a volume")
    if np.prod(full, dtype=float) > MAX_VOXELS:
        raise ValueError(f"its {'x'.join(map(str, full))} voxels are more than {MAX_VOXELS}")
    kind = volume.get_data_dtype()
    if kind.kind not in "iuf":
        raise ValueError(f"its voxels are of type {kind}, not real numbers")
    orientation = None
    if len(full) == 3:
        orientation = nibabel.io_orientation(volume.affine)
        if not np.isfinite(orientation).all():
            raise ValueError("its affine gives its axes no orientation")
        sides = [full[axis] for axis in np.argsort(orientation[:, 0])]
        count = sides.pop(reading.nifti_axis)
        shape = Shape(count, *sides[::-1], 1)
    else:
        shape = Shape(1, *full, 1)
    unscaled = reading.nifti_scale == "folder" or reading.ends is not None  # VALUE_RANGE is of all volumes

    def slices() -> Iterator[Wide]:
        values = np.asarray(volume.dataobj).reshape(full)
        if orientation is None:
            parts = [values]
        else:
            values = nibabel.apply_orientation(values, orientation)
            parts = np.moveaxis(values, reading.nifti_axis, 0)[:, ::-1, ::-1].transpose(0, 2, 1)
        whole = ends(values, reading) if reading.nifti_scale == "volume" and not unscaled else None
        for part in parts:
            yield Wide(part, ends(part, reading) if reading.nifti_scale == "slice" and not unscaled else whole)

    return shape._replace(marks=(str(kind),) if unscaled else ()), unscaled, slices()


def is_dicom(path: str) -> bool:
    """Whether a file is DICOM: by its suffix, or, where it has none, by its content."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix and not suffix[1:].isdecimal():  # names such as IM.0001 or UIDs have none
        return suffix in DICOM
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def study(path: str) -> str:
    """What tells a file's study from others; "" if it does not say."""
    try:
        import pydicom
        return str(pydicom.dcmread(path, stop_before_pixels=True).get("StudyInstanceUID", ""))
    except Exception:  # it will be decoded later, which tells the reason
        return ""


def frames(path: str) -> tuple[Shape, bool, Iterator["Image.Image | Wide"]]:
    """What a DICOM file holds, whether its values still need a range, and its frames."""
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_rescale, pixel_array
    content = pydicom.dcmread(path)
    count, height, width = (int(content.get(name, 1)) for name in ("NumberOfFrames", "Rows", "Columns"))
    if "PixelData" not in content:
        raise ValueError("it holds no image")
    if count * height * width > MAX_VOXELS:
        raise ValueError(f"its {count} frames have more than {MAX_VOXELS} pixels")
    kind = content.PhotometricInterpretation
    bits = int(content.BitsStored)
    wide = kind in GREY and (bits != 8 or content.PixelRepresentation or "RescaleSlope" in content
                             or "ModalityLUTSequence" in content)

    def pages() -> Iterator["Image.Image | Wide"]:
        values = pixel_array(content)  # YBR colours as RGB
        values = values.reshape(count, height, width, -1)
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values[..., 0], content)
        elif kind in GREY:
            values = apply_rescale(values[..., 0], content)
        elif values.dtype != np.uint8:
            values = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)
        for frame in values:
            if wide:
                yield Wide(frame, inverted=kind == "MONOCHROME1")
            elif kind == "MONOCHROME1":
                yield Image.fromarray(255 - frame)
            else:
                yield Image.fromarray(frame if frame.dtype == np.uint8 else (frame >> 8).astype(np.uint8))

    marks = (f"DICOM of {bits} bits",) if wide else ()
    return Shape(count, height, width, 0, marks), wide, pages()

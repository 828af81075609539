"""Folders of images: layouts, sizes, notices, and the decoded array."""
import errno
import json
import multiprocessing
import os

import numpy as np
import phantom
import pytest
import torch
from conftest import SMALL_PIXELCNN, SMALL_VQVAE
from images import nifti, noise, one, write, write_many
from PIL import Image

import dataset
import train_vqvae
from loading import decode, folder, layout
from loading.reading import Reading
from modules import VQVAE, VQVAEConfig
from running import cli, figures
from running.cli import UserError


def load(root, tmp_path, **reading):
    return folder.load(str(root), str(tmp_path / "data"), Reading(**reading))


# ---- folders


def test_flat_folder_holds_out_a_fixed_tenth(tmp_path):
    root = write_many(tmp_path / "images", 300)
    names = [name for name, _, _ in layout.list_files(str(root))[0]]
    order, classes, *_ = layout.arrange(names)
    tests = {entry.path for entry in order if entry.side == "test"}
    assert classes == [] and 15 <= len(tests) <= 45
    fewer = {entry.path for entry in layout.arrange(names[::2]).order if entry.side == "test"}
    assert fewer == tests & set(names[::2])
    data = load(root, tmp_path)
    assert data.train == 300 - len(tests) and data.images.shape == (300, 1, 6, 8) and not data.labels.any()
    for image, entry in zip(data.images, order):
        assert np.array_equal(image[0], noise(6, 8, seed=int(entry.path[:4])))
    splits = dataset.load(str(root), str(tmp_path / "data"))
    assert len(splits.validation.images) == data.train // 20
    assert len({image.numpy().tobytes() for split in splits[:3] for image in split.images}) == 300
    few = dataset.load(str(root), str(tmp_path / "data"), limit=6)
    assert [len(split.images) for split in few[:3]] == [5, 1, 6]
    with pytest.raises(UserError, match="at least 2 and 1 are needed"):
        dataset.load(str(root), str(tmp_path / "data"), limit=1)


def test_class_folders_and_splits(tmp_path):
    for part, count in (("train", 20), ("test", 7)):
        for number, name in enumerate(("cat", "dog")):
            write_many(tmp_path / "a" / part / name / "deeper", count, start=100 * number)
    write_many(tmp_path / "a" / "val" / "cat", 5)
    data = load(tmp_path / "a", tmp_path)
    assert data.class_names == ["cat", "dog"] and len(data.images) == 59 and data.train == 45 and data.validation == 5
    for image, label in zip(data.images, data.labels):
        start = 100 * int(label)
        assert any(np.array_equal(image[0], noise(6, 8, seed=start + i)) for i in range(20))


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", flock)
    assert len(load(write_many(tmp_path / "images", 10), tmp_path).images) == 10


def test_channels(tmp_path):
    root = write_many(tmp_path / "images", 10)
    assert load(root, tmp_path).images.shape[1] == 1
    assert load(root, tmp_path, channels=3).images.shape[1] == 3
    write_many(root, 2, channels=3, start=20)
    images = load(root, tmp_path).images
    assert images.shape == (12, 3, 6, 8)
    assert sum(bool((image[0] == image[2]).all()) for image in images) == 10
    grey = load(root, tmp_path, channels=1).images
    assert grey.shape[1] == 1
    coloured = np.asarray(Image.fromarray(noise(6, 8, 3, seed=20)).convert("L"))
    assert any(np.array_equal(image[0], coloured) for image in grey)
    for number in range(6):  # grey files that are saved as RGB
        write(tmp_path / "rgb" / f"{number}.png", noise(6, 8)[:, :, None].repeat(3, 2))
    for channels, expected in (("auto", 1), (3, 3)):
        assert load(tmp_path / "rgb", tmp_path, channels=channels).images.shape == (6, expected, 6, 8)


@pytest.mark.parametrize("height, width", [(1, 1), (17, 31), (28, 28), (256, 144), (1, 500)])
def test_sizes(tmp_path, height, width):
    root = write_many(tmp_path / "images", 5, height, width)
    images = load(root, tmp_path).images
    assert images.shape == (5, 1, height, width)
    model = VQVAE(VQVAEConfig(1, 8, 1, 4, 4, 8, 4)).eval()
    pixels = dataset.to_float(images[:2])
    before = model(pixels).images
    assert before.shape == pixels.shape

    def spoil(_module, _inputs, output):
        output[:, :, height:] = output[:, :, :, width:] = torch.nan
        return output
    model.decoder.register_forward_hook(spoil)
    assert torch.equal(model(pixels).images, before)  # so neither does the loss see what padding became
    assert load(root, tmp_path, image_size="16x24").images.shape == (5, 1, 16, 24)


def by_name(data):
    """The images by the names of their files, each (H, W, C)."""
    return {name: image.permute(1, 2, 0).numpy() for name, image in zip(data.files, data.images)}


def test_a_few_of_another_size_are_resized_and_named(tmp_path, capfd):
    root = write_many(tmp_path / "images", 20, 6, 8)
    write(root / "tall.png", noise(8, 6))
    write(root / "large.png", noise(60, 80))
    write(root / "speck.png", noise(1, 1))
    data = load(root, tmp_path)
    assert data.images.shape == (23, 1, 6, 8)
    said = capfd.readouterr().err
    assert "sizes from 1x1 to 60x80 brought to 6x8: 20 kept as they are, 3 resized and cropped" in said
    load(root, tmp_path)
    assert "3 resized" in capfd.readouterr().err      # said at every start
    by_hand = load(root, tmp_path, image_size="6x8")
    assert torch.equal(data.images, by_hand.images)
    assert "sizes from" not in capfd.readouterr().err


def test_sizes_near_one_another_are_cropped_or_padded_about_the_middle(tmp_path, capfd):
    sizes = {f"{height}x{width}.png": (height, width) for height in range(30, 36) for width in range(44, 54)}
    for name, size in sizes.items():
        write(tmp_path / "images" / name, np.maximum(noise(*size), 9))
    got = by_name(load(tmp_path / "images", tmp_path))
    assert len(got) == 60 and "60 cropped or padded about the middle" in capfd.readouterr().err
    for name, (height, width) in sizes.items():
        pixels = np.maximum(noise(height, width), 9)
        top, left = (40 - height) // 2, max(0, 56 - width) // 2
        assert got[name].shape == (40, 56, 1)        # the medians, 33 and 49, rounded up to multiples of 8
        assert np.array_equal(got[name][top:top + height, left:left + width, 0], pixels)
        assert (got[name].sum(dtype=int) - pixels.sum(dtype=int)) == 9 * (40 * 56 - height * width)  # the darkest


@pytest.mark.parametrize("sizes, expected", [
    ({(17, 31): 5}, (17, 31, "same")), ({(28, 28): 99, (30, 29): 1}, (28, 28, "crop")),
    ({(35, 50): 2, (33, 47): 2, (38, 55): 2}, (40, 56, "crop")),
    ({(375, 500): 60, (500, 375): 50, (333, 500): 40}, (256, 256, "resize")),  # landscape and portrait: a square
    ({(300, 400): 3, (1500, 2000): 3, (750, 1000): 3}, (256, 344, "resize")),  # all of one shape, which is kept
    ({(100, 100): 60, (300, 300): 40}, (100, 100, "resize")), ({(1, 1): 2, (2, 3): 2, (9, 9): 2}, (8, 8, "resize")),
])
def test_the_common_size(sizes, expected):
    assert folder.common_size(sizes) == expected


def test_images_cut_by_the_common_size_lose_their_edges_alone(tmp_path):
    root = write_many(tmp_path / "images", 40, 20, 20)
    write(root / "wide.png", noise(20, 25))
    assert np.array_equal(by_name(load(root, tmp_path))["wide.png"][:, :, 0], noise(20, 25)[:, 2:22])


# ---- one range for a folder, and what a user is told


def write_wide(root, count, high=4096, size=(6, 8)):
    for number in range(count):
        write(root / f"{number:03d}.png", np.random.default_rng(number).integers(0, high, size, np.uint16))
    return root


def test_samples_wider_than_8_bits_share_one_range(tmp_path, capfd):
    root = write_wide(tmp_path / "images", 40)
    write(root / "dark.png", np.full((6, 8), 400, np.uint16))
    pooled = np.concatenate([np.asarray(Image.open(path)).ravel() for path in sorted(root.iterdir())])
    low, high = np.sort(pooled)[[int(percent / 100 * (pooled.size - 1)) for percent in (0.5, 99.5)]]
    got = by_name(load(root, tmp_path))
    assert f"41 of 41 files hold uint16: {low} becomes black and {high} white" in capfd.readouterr().err
    for name, image in got.items():
        values = np.asarray(Image.open(root / name)).astype(float)
        assert np.array_equal(image[:, :, 0], np.rint(((values - low) / (high - low)).clip(0, 1) * 255))
    data = dataset.load(str(root), str(tmp_path / "data"))
    assert data.value_range == f"{low} {high}"
    alone = one(root / "dark.png", value_range=data.value_range)  # as a run's later stages read a single file
    assert np.array_equal(alone, got["dark.png"])
    given = by_name(load(root, tmp_path, value_range="0 4095"))
    assert given["dark.png"].max() == round(400 / 4095 * 255)
    with pytest.raises(UserError, match="VALUE_RANGE"):
        load(root, tmp_path, value_range="5 4")


@pytest.mark.parametrize("scale, equal", [("folder", False), ("volume", True)])
def test_nifti_scaled_over_the_folder(tmp_path, scale, equal):
    volume = np.random.default_rng(0).integers(0, 900, (5, 6, 8)).astype(np.int16)
    for number in range(4):
        nifti(tmp_path / "images" / f"{number}.nii.gz", volume * (number + 1))
    got = load(tmp_path / "images", tmp_path, nifti_scale=scale)
    first, last = (got.images[[name == f"{number}.nii.gz" for name in got.files]].float() for number in (0, 3))
    assert torch.equal(first, last) is equal
    if not equal:
        assert (last.clip(max=254) - 4 * first).abs()[last < 255].max() <= 3


def test_the_decoded_array_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    root = write_wide(tmp_path / "images", 30, size=(20, 20))
    write_many(root, 50, 22, 21, start=100)
    write_many(root, 20, 18, 21, channels=3, start=200)
    found = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(folder.devices, "cores", lambda: cores)
        data = folder.load(str(root), str(tmp_path / f"data{cores}"), Reading())
        found.append((data.images.numpy().tobytes(), data.files, data.labels.tolist()))
    assert found[0] == found[1] == found[2]


def test_tiff_stacks_are_volumes(tmp_path):
    for number in range(12):
        pages = [Image.fromarray(noise(5, 7, seed=100 * number + page)) for page in range(4)]
        write(tmp_path / "images" / f"{number}.tif", pages[0], save_all=True, append_images=pages[1:])
    data = load(tmp_path / "images", tmp_path)
    assert data.images.shape == (48, 1, 5, 7) and [data.files.count(f"{n}.tif") for n in range(12)] == [4] * 12
    assert data.files[:data.train] == [name for name in data.files if name in data.files[:data.train]]
    for name, image, number in zip(data.files, data.images, [0, 1, 2, 3] * 12):
        assert np.array_equal(image[0], noise(5, 7, seed=100 * int(name[:-4]) + number))


def test_a_line_for_what_sets_a_part_of_the_files_apart(tmp_path, capfd):
    def said(root):
        capfd.readouterr()
        load(root, tmp_path)
        return capfd.readouterr().err
    root = write_many(tmp_path / "images", 60)
    assert said(root).count("\n") == 1 and not said(root)  # that it was decoded, and then nothing
    write(root / "a.png", noise(6, 8, 3))
    assert "1 of 61 files are in colour, the others grey: all become grey (--channels 3" in said(root)
    assert load(root, tmp_path).images.shape[1] == 1
    write_many(root, 9, channels=3, start=100)
    assert "10 of 70 files are in colour, the others grey: all become RGB (--channels 1" in said(root)
    write(root / "b.png", np.dstack([noise(6, 8), noise(6, 8)]))
    assert "1 of 71 files have transparency" in said(root)
    write(root / "c.png", noise(6, 8).astype(np.uint16) * 16)
    assert "1 of 72 files hold uint16: " in said(root)
    frames = [Image.fromarray(noise(6, 8, seed=i)) for i in range(3)]
    write(root / "d.gif", frames[0], save_all=True, append_images=frames[1:])
    assert "1 of 73 files are animated: only their first frame is used" in said(root)
    write(root / "e.tif", frames[0], save_all=True, append_images=[Image.fromarray(noise(3, 3))])
    assert "1 of 74 files have pages of another size than the first" in said(root)


@pytest.mark.parametrize("value, word", [(0, "all 20 images are the same, black"), (7, "all 20 images are the same")])
def test_a_line_for_images_that_are_all_the_same(tmp_path, capfd, value, word):
    for number in range(20):
        write(tmp_path / "images" / f"{number}.png", np.full((6, 8), value, np.uint8))
    load(tmp_path / "images", tmp_path)
    assert word in capfd.readouterr().err
    write_many(tmp_path / "images", 40, start=100)
    load(tmp_path / "images", tmp_path)
    assert "about 33% of the images are blank" in capfd.readouterr().err


def test_resizing_crops_to_the_middle(tmp_path):
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 255
    write(tmp_path / "a.png", pixels)
    assert one(tmp_path / "a.png", image_size="5").mean() > 245
    assert one(tmp_path / "a.png", image_size="4x12").shape == (4, 12, 1)


def test_a_few_unreadable_files_are_left_out_and_more_are_an_error(tmp_path, capfd):
    root = write_many(tmp_path / "images", 199)
    (root / "broken.png").write_bytes(b"junk")
    assert len(load(root, tmp_path).images) == 199
    assert "broken.png (not an image of a known format)" in capfd.readouterr().err
    for number in range(12):
        (root / f"bad{number}.jpg").write_bytes(b"")
    os.symlink(root / "nowhere.png", root / "link.png")
    with pytest.raises(UserError, match="14 of the 213 .* MAX_UNREADABLE .*; .* and 4 more") as error:
        load(root, tmp_path)
    assert "\n" not in str(error.value) and str(error.value).count("(empty)") >= 8
    assert len(load(root, tmp_path, max_unreadable=0.1).images) == 199
    assert "link.png (No such file or directory)" in capfd.readouterr().err
    with pytest.raises(UserError, match="14 of the 213"):  # decoded already, but with more allowed
        load(root, tmp_path)


def test_folders_that_are_none(tmp_path, script):
    def refused(root, *flags):
        outcome = script("train_vqvae", "--dataset", root, "--data-dir", tmp_path / "data", "--output-dir",
                         tmp_path / "out", *flags)
        assert outcome.status == 1 and outcome.err.count("\n") == 1 + ("decoded 1 images" in outcome.err)
        assert "train_vqvae.py: error: " in outcome.err and "Traceback" not in outcome.err
        return outcome.err
    for name in ("empty", "texts", "loop", "broken", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    assert "no image" in refused(tmp_path / "empty") and "1 .txt" in refused(tmp_path / "texts")
    os.symlink(tmp_path / "loop", tmp_path / "loop" / "again")
    write_many(tmp_path / "loop", 3)
    assert "symbolic link" in refused(tmp_path / "loop")
    os.unlink(tmp_path / "loop" / "again")
    os.symlink("self.png", tmp_path / "loop" / "self.png")
    assert "symbolic links" in refused(tmp_path / "loop")
    (tmp_path / "broken" / "a.png").write_bytes(b"junk")
    assert "1 of the 1 image files" in refused(tmp_path / "broken")
    assert "cannot be decoded" in refused(tmp_path / "broken", "--max-unreadable", 1)
    os.mkfifo(tmp_path / "pipe" / "a.png")
    assert "no image" in refused(tmp_path / "pipe")
    write_many(tmp_path / "single", 1)
    assert "at least 2 and 1 are needed" in refused(tmp_path / "single")
    assert "is no data set and no folder" in refused(tmp_path / "nowhere")
    assert not list((tmp_path / "data" / "folders").glob("*.tmp"))


def test_folder_without_permission(tmp_path, monkeypatch):
    root = write_many(tmp_path / "images" / "inside", 3)

    def scandir(path):
        if str(path) == str(root):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)
    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)  # root, who may run the tests, may read everything
    with pytest.raises(UserError, match="inside: Permission denied"):
        load(tmp_path / "images", tmp_path)


@pytest.mark.parametrize("flags", [("--image-size", "0x4"), ("--image-size", "big"), ("--channels", "2"),
                                   ("--nifti-axis", "3"), ("--nifti-low", "101"), ("--max-unreadable", "1.5"),
                                   ("--value-range", "5"), ("--value-range", "0 inf"), ("--nifti-scale", "set")])
def test_wrong_flags(script, flags):
    outcome = script("train_vqvae", *flags)
    assert outcome.status == 2 and flags[0] in outcome.err and outcome.err.count("\n") == 1


def test_flags_of_text_may_be_numbers_and_ranges_negative():
    args = cli.parse(vars(train_vqvae), ["--image-size", "256x128", "--value-range", "-160 240.5"])
    assert args.IMAGE_SIZE == "256x128" and cli.parse(vars(train_vqvae), []).IMAGE_SIZE == "auto"
    assert Reading(value_range=args.VALUE_RANGE).ends == (-160, 240.5)


def test_nifti_percentiles_the_wrong_way_round(tmp_path, script):
    outcome = script("train_vqvae", "--dataset", tmp_path, "--output-dir", tmp_path / "out", "--nifti-low",
                     60, "--nifti-high", 40)
    assert outcome.status == 1 and "NIFTI_LOW" in outcome.err and outcome.err.count("\n") == 1


# ---- the decoded array


def decodings(monkeypatch):
    """A list that grows by one with every decoding of a folder."""
    calls, real = [], folder._decode_folder
    monkeypatch.setattr(folder, "_decode_folder", lambda *given: (calls.append(1), real(*given))[1])
    return calls


def test_decodes_once_and_again_when_a_file_changed(tmp_path, monkeypatch):
    calls = decodings(monkeypatch)
    root = write_many(tmp_path / "images", 20)
    first = load(root, tmp_path).images.clone()
    assert torch.equal(load(root, tmp_path).images, first) and len(calls) == 1
    write(root / "0003.png", noise(6, 8, seed=99))
    os.utime(root / "0003.png", ns=(1, 1))
    changed = load(root, tmp_path).images
    assert len(calls) == 2 and (changed != first).flatten(1).any(1).sum() == 1
    os.utime(root / "0004.png", ns=(1, 1))
    load(root, tmp_path)
    os.rename(root / "0005.png", root / "moved.png")
    load(root, tmp_path)
    os.unlink(root / "0006.png")
    assert len(load(root, tmp_path).images) == 19 and len(calls) == 5
    load(root, tmp_path, image_size="4")
    load(root, tmp_path)
    assert len(calls) == 6                     # a decoding for each way to read


@pytest.mark.parametrize("damage", ["index cut", "pixels cut", "no pixels", "other version", "no index"])
def test_a_damaged_decoding_is_made_anew(tmp_path, monkeypatch, damage):
    calls = decodings(monkeypatch)
    root = write_many(tmp_path / "images", 5)
    first = load(root, tmp_path).images.clone()
    home, = (path for path in (tmp_path / "data" / "folders").iterdir() if path.is_dir())
    index, pixels = home / "index.json", home / "images"
    if damage == "index cut":
        index.write_bytes(index.read_bytes()[:50])
    elif damage == "pixels cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "no pixels":
        pixels.unlink()
    elif damage == "other version":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 0}))
    else:
        index.unlink()
    assert torch.equal(load(root, tmp_path).images, first) and len(calls) == 2


@pytest.mark.parametrize("where", ["_join", "_decode_tasks", "atomic"])
def test_an_interrupted_decoding_leaves_nothing(tmp_path, monkeypatch, where):
    root = write_many(tmp_path / "images", 5)
    with monkeypatch.context() as patch:
        def interrupt(*_):
            raise KeyboardInterrupt
        patch.setattr(folder, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(root, tmp_path)
    assert [path.suffix for path in (tmp_path / "data" / "folders").iterdir()] == [".lock"]
    assert len(load(root, tmp_path).images) == 5


def _die(*_):
    os._exit(9)


@pytest.mark.skipif(os.name == "nt", reason="needs fork to put the fault into the process")
def test_a_decoding_process_that_dies_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "decode", _die)
    with pytest.raises(UserError, match="a decoding process was killed"):
        load(write_many(tmp_path / "images", 5), tmp_path)


def _load_and_count(root, data, results):
    results.put(len(folder.load(root, data, Reading()).images))


def test_processes_that_start_together_decode_once(tmp_path, capfd):
    root = write_many(tmp_path / "images", 200)
    context = multiprocessing.get_context("fork" if os.name != "nt" else "spawn")
    results = context.Queue()
    given = str(root), str(tmp_path / "data"), results
    processes = [context.Process(target=_load_and_count, args=given) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [200] * 3
    for process in processes:
        process.join()
    assert capfd.readouterr().err.count("decoded 200 images") == 1


# ---- batches


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_are_the_rows_in_order(monkeypatch, count, mapped):
    monkeypatch.setattr(folder, "any_mapped", lambda: mapped)
    images, labels = torch.randint(0, 256, (50, 1, 3, 4), dtype=torch.uint8), torch.arange(50)
    indices = list(torch.randperm(50)[:10 * count].split(10)) if count else []
    got = list(dataset.batches(iter(indices), torch.device("cpu"), images, labels))
    assert len(got) == count
    for index, (rows, marks) in zip(indices, got):
        assert torch.equal(rows, images[index]) and torch.equal(marks, labels[index])


def test_batches_of_what_is_mapped_are_read_one_ahead_and_no_more(monkeypatch):
    monkeypatch.setattr(folder, "any_mapped", lambda: True)
    asked = []

    def indices():
        for i in range(6):
            asked.append(i)
            yield torch.tensor([i])
    reader = dataset.batches(indices(), torch.device("cpu"), torch.arange(6))
    next(reader)
    assert asked == [0, 1]
    next(reader)
    assert asked == [0, 1, 2]
    reader.close()


def resident():
    """Bytes of memory that this process holds, files mapped included."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_200_000_images_of_64x64_need_the_memory_of_a_few_batches(tmp_path):
    count, shape = 200_000, (64, 64, 3)
    with open(tmp_path / "images", "wb") as file:
        file.truncate(count * 64 * 64 * 3)  # 2.4 GB of zeros that take no room on disk
    images = folder._map(tmp_path / "images").view(count, *shape).permute(0, 3, 1, 2)
    order = torch.randperm(count)[:20_000].split(64)  # 234 MiB of them
    before = most = resident()
    for number, (part,) in enumerate(dataset.batches(order, torch.device("cpu"), images)):
        assert part.shape == (len(order[number]), 3, 64, 64)
        most = max(most, resident())
    print(f"resident: {before / 2**20:.0f} MiB before, {most / 2**20:.0f} MiB at most, "
          f"for {images.nbytes / 2**20:.0f} MiB")
    assert most - before < 32 * 2**20


def test_place_goes_by_size(monkeypatch):
    moved = []

    class Probe(torch.Tensor):
        def to(self, device):
            moved.append(device)
            return self
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9999))
    small, large = (torch.zeros(size, dtype=torch.uint8).as_subclass(Probe) for size in (500, 501))
    assert dataset.place(large, cuda) is large and not moved
    dataset.place(small, cuda)
    assert moved == [cuda]


def test_pixel_variance_of_evenly_spaced_images():
    images = torch.randint(0, 256, (3000, 1, 4, 4), dtype=torch.uint8)
    whole = dataset.to_float(images).double().var(correction=0).item()
    assert dataset.pixel_variance(images) == pytest.approx(whole)
    third = dataset.to_float(images[::3]).double().var(correction=0).item()
    assert dataset.pixel_variance(images, enough=images.nbytes // 3) == pytest.approx(third)


# ---- the scripts


def test_study_through_every_script(tmp_path, script):
    phantom.write_study(tmp_path / "study", 40, 2, 32, 16, 18)
    out = ["--output-dir", tmp_path / "out"]
    outcome = script("train_vqvae", *SMALL_VQVAE, "--batch-size", 8, "--dataset", tmp_path / "study", "--data-dir",
                     tmp_path / "data", *out)
    assert outcome.status == 0 and "brought to 32x16: 40 kept as they are, 2 cropped or padded" in outcome.err
    assert script("train_pixelcnn", *SMALL_PIXELCNN, "--batch-size", 8, *out).status == 0
    assert script("generate", "--num-samples", 2, *out).status == 0
    with Image.open(tmp_path / "out" / "sample_0.png") as sample:
        assert sample.size == (16, 32) and sample.mode == "L"
    outcome = script("reconstruct", "--num-images", 1, *out)
    assert outcome.status == 0 and "mean of 1: MSE" in outcome.out


def test_reconstruct_what_the_model_never_saw(tmp_path, script, trained):
    out = ["--output-dir", trained, "--device", "cpu"]
    root = write_many(tmp_path / "images", 3, 19, 45, 3)
    outcome = script("reconstruct", *out, "--dataset", root, "--data-dir", tmp_path / "data")
    assert outcome.status == 0 and "mean of 3: MSE" in outcome.out
    with Image.open(trained / "reconstructed_image_0.png") as pair:
        assert pair.size == (6 * 2 * 45 + 3 * figures.GAP, 6 * 19 + 2 * figures.GAP)  # two, enlarged six times
    with Image.open(trained / "latents.png") as figure:
        assert figure.size[0] > 1000
    outcome = script("reconstruct", *out, "--dataset", root / "0000.png")
    assert outcome.status == 0 and "mean of 1: MSE" in outcome.out
    outcome = script("reconstruct", *out, "--dataset", root / "0000.png", "--image-size", "8x9", "--latent-channel", 3)
    assert outcome.status == 0 and "larger than these images" in outcome.out and "nan" not in outcome.out
    (tmp_path / "a.png").write_bytes(b"junk")
    for flags in (("--dataset", tmp_path / "a.png"), ("--latent-channel", 8), ("--dataset", tmp_path / "nowhere")):
        outcome = script("reconstruct", *out, *flags)
        assert outcome.status == 1 and outcome.err.count("\n") == 1

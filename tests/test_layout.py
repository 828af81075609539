"""What a folder is taken for: random layouts against what they were made to mean, and every named case."""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_PIXELCNN, SMALL_VQVAE
from PIL import Image

import dataset
from judging import testset
from loading import folder, layout, summary
from loading.decode import Reading
from running import cli
from running.cli import UserError
from training import checkpoint


def files(prefix, count, suffix=".png", start=0):
    return [f"{prefix}{number}{suffix}" for number in range(start, start + count)]


def taken(names, classes="auto"):
    """Of every kept path its split and class, the class names, and all lines in one."""
    result = layout.arrange(names, classes)
    sides = {name: "test" if test else "validation" if name in result.validation else "train"
             for name, test, _ in result.order}
    labels = {name: result.class_names[label] if result.class_names else None for name, _, label in result.order}
    return sides, labels, result.class_names, " | ".join(result.left_out + result.taken_for)


def write(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, size, np.uint8)
    Image.fromarray(pixels).save(path)


def write_many(root, count, start=0):
    for number in range(start, start + count):
        write(root / f"{number:03d}.png", number)
    return root


def write_nifti(path, slices, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.random.default_rng(seed).integers(0, 255, (8, 8, slices)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


# ---- random layouts against a plain statement of the rule

STYLES = [("train", "val", "test"), ("Train", "Valid", "Test"), ("TRAINING", "VALIDATION", "TESTING"),
          ("training_set", "val_set", "test_set"), ("imagesTr", "imagesVal", "imagesTs"),
          ("seg_train", "seg_val", "seg_test"), ("TrainingData", "ValidationData", "TestData"),
          ("train-images", "dev-images", "test-images"), ("train", "validation", "test1")]
SIDES = ("train", "validation", "test")
CLASSES = [["cat", "dog"], [str(number) for number in range(12)], ["b 2", "b 10", "A", "c"], ["01", "2", "10"],
           ["train", "ship", "bus"], ["n0144", "n0001"], ["ä", "Z", "ω"]]  # the order is the one that is expected ...
ORDERED = [["cat", "dog"], [str(number) for number in range(12)], ["A", "b 2", "b 10", "c"], ["01", "2", "10"],
           ["bus", "ship", "train"], ["n0001", "n0144"], ["Z", "ä", "ω"]]  # ... here


def random_layout(chance):
    """Paths, what each is meant to be: (split or None, class or None), paths meant to be left out, and the classes."""
    outer = "".join(f"{chance.choice(['set', 'my data', 'archive (1)', 'v2', 'images'])}/"
                    for _ in range(chance.choice([0, 0, 1, 2])))
    number = chance.randrange(len(CLASSES))
    classes = chance.choice([[], CLASSES[number]])
    style = chance.choice(STYLES)
    sides = chance.choice([(), ("train", "test"), ("train", "validation"), SIDES])
    if "train" in classes and sides == ():
        sides = ("train", "test")
    meant, lost = {}, set()
    test_only = classes[0] if len(classes) > 2 and "test" in sides and chance.random() < 0.3 else None
    for side in sides or (None,):
        top = outer + (f"{style[SIDES.index(side)]}/" if side else "")
        for name in classes or [None]:
            if name == test_only and side != "test" and name:
                continue
            below = f"{top}{name}/" if name else top
            for count in range(chance.randint(25, 40)):
                deeper = chance.choice(["", "", "a/", "b c/d/"]) if name else ""
                meant[f"{below}{deeper}{count}.png"] = side, name
        if classes and chance.random() < 0.3:
            lost.add(f"{top}preview.png")  # one loose file among many
    if sides and chance.random() < 0.3:
        lost |= {f"{outer}readme/{count}.png" for count in range(3)}
    if chance.random() < 0.3 and sides:
        lost |= {f"{outer}labelsTr/{count}.png" for count in range(20)}
    return meant, lost, ORDERED[number] if classes else []


@pytest.mark.parametrize("seed", range(200))
def test_random_layouts_are_taken_for_what_they_were_made_to_be(seed):
    chance = random.Random(seed)
    meant, lost, classes = random_layout(chance)
    names = [*meant, *lost]
    chance.shuffle(names)
    sides, labels, class_names, told = taken(names)
    assert set(sides) == set(meant), told
    assert class_names == classes
    assert labels == {name: label for name, (_, label) in meant.items()}
    given = {side for side, _ in meant.values()}
    for name, (side, _) in meant.items():
        drawn = {"train", "test"} if side in (None, "train") and "test" not in given else {side}
        assert sides[name] in drawn, (name, told)
    if lost:
        assert "left out" in told
    if "test" not in given:
        eligible = [name for name, (side, _) in meant.items() if side != "validation"]
        assert 0 < sum(sides[name] == "test" for name in eligible) < 0.35 * len(eligible)
    assert taken([f"one more/{name}" for name in names])[2] == class_names  # a further outer folder changes nothing
    assert {name.removeprefix("one more/"): side for name, side
            in taken([f"one more/{name}" for name in names])[0].items()} == sides
    fewer = [name for number, name in enumerate(sorted(meant)) if number % 3]  # no file changes sides as others go
    assert taken(fewer)[0].items() <= sides.items()


@pytest.mark.parametrize("seed", range(100))
def test_random_studies_keep_a_subjects_files_together(seed):
    chance = random.Random(seed)
    name = chance.choice(["sub-{:02d}", "sub-P{}x", "patient_{}", "BraTS20_Training_{:03d}", "case {}",
                          "{:03d}_S_{:04d}"])
    groups = chance.choice([[""], ["AD/", "CN/"]])
    where = chance.choice(["", "anat/", "ses-1/anat/"])
    split = chance.choice([("",), ("train/", "test/")])
    outer = chance.choice(["", "study/"])
    names, subject_of = [], {}
    for side in split:
        for group in groups:
            for number in range(chance.randint(8, 30)):
                person = name.format(number, number)
                for scan in range(chance.randint(1, 6)):
                    path = f"{outer}{side}{group}{person}/{where}{person}_{scan}.nii.gz"
                    names.append(path)
                    subject_of[path] = group + person
                if chance.random() < 0.5:
                    names.append(f"{outer}{side}{group}{person}/{where}{person}_seg.nii.gz")
    chance.shuffle(names)
    sides, labels, class_names, _ = taken(names)
    assert set(sides) == set(subject_of)  # all but the masks
    assert class_names == (["AD", "CN"] if len(groups) == 2 else [])
    if split == ("",):
        assert {"train", "test"} == set(sides.values())
        for person in set(subject_of.values()):
            assert len({sides[path] for path in sides if subject_of[path] == person}) == 1
    else:
        assert all(sides[path] == path.removeprefix(outer).split("/")[0] for path in sides)
    result = layout.arrange(names)
    order = [(test, subject_of[path]) for path, test, _ in result.order]
    assert len(set(order)) == sum(one != other for one, other in zip(order, [None, *order]))  # each in one piece


def undecidable(names, says):
    with pytest.raises(UserError, match=says) as error:
        layout.arrange(names)
    message = str(error.value)
    assert "`--classes folders`" in message and "`--classes none`" in message and "\n" not in message
    return taken(names, "folders"), taken(names, "none")


@pytest.mark.parametrize("seed", range(50))
def test_as_many_loose_files_as_files_in_folders_are_undecidable(seed):
    chance = random.Random(seed)
    inside = [path for name in ("cat", "dog", "eel")[:chance.randint(2, 3)]
              for path in files(f"{name}/", chance.randint(5, 30))]
    loose = files("", chance.randint(len(inside) // 5, 4 * len(inside)))
    folders, none = undecidable(inside + loose, "in no folder")
    assert set(folders[0]) == set(inside) and folders[2] == sorted({path[:3] for path in inside})
    assert set(none[0]) == {*inside, *loose} and none[2] == []


# ---- A: the meaning of a folder


def test_numbered_classes_are_in_the_order_of_their_numbers():
    names = [path for number in range(12) for path in files(f"{number}/", 5)]
    assert taken(names)[2] == [str(number) for number in range(12)]
    assert sorted(["a10b2", "a9", "a10b1", "A1", "10", "9", "a"], key=layout.natural) \
        == ["9", "10", "a", "A1", "a9", "a10b1", "a10b2"]


def test_classes_in_train_beside_a_flat_test():
    names = files("train/cat/", 30) + files("train/dog/", 30) + files("test/", 10)
    folders, none = undecidable(names, "10 images of the test split are in no class folder")
    assert folders[2] == ["cat", "dog"] and "left out" in folders[3] and "test" in folders[0].values()
    assert len(folders[0]) == 60
    assert none[2] == [] and [none[0][name] for name in files("test/", 10)] == ["test"] * 10


def test_one_loose_file_beside_class_folders():
    sides, labels, classes, told = taken(["preview.png", *files("cat/", 8), *files("dog/", 8)])
    assert classes == ["cat", "dog"] and "preview.png" not in sides and "preview.png" in told
    sides, _, classes, told = taken(["odd/one.png", *files("", 30)])
    assert classes == [] and len(sides) == 30 and "odd/one.png" in told


def test_an_outer_folder_is_looked_through():
    inner = files("train/cat/", 10) + files("train/dog/", 10) + files("test/cat/", 5) + files("test/dog/", 5)
    for outer in ("", "set/", "a/b/c/"):
        sides, _, classes, _ = taken([outer + name for name in inner])
        assert classes == ["cat", "dog"] and sum(side == "test" for side in sides.values()) == 10
    assert taken(files("photos/", 20))[2] == []  # alone, no class
    assert taken(files("photos/", 20), "folders")[2] == ["photos"]
    assert taken(files("case 1/cat/", 20) + files("case 1/dog/", 20))[2] == ["cat", "dog"]
    assert taken(files("sub-01/anat/", 20, ".nii"))[2] == []
    assert set(layout.arrange(files("sub-01/anat/", 4, ".nii")).subjects.values()) == {"sub-01"}
    assert taken(["logo.png", *files("set/cat/", 20), *files("set/dog/", 20)])[2] == ["cat", "dog"]


@pytest.mark.parametrize("train, test", [(style[0], style[2]) for style in STYLES] + [("train", "Testing")])
def test_splits_in_many_spellings(train, test):
    sides, _, classes, _ = taken(files(f"{train}/cat/", 6) + files(f"{test}/cat/", 3) + files(f"{train}/dog/", 6))
    assert classes == ["cat", "dog"] and sum(side == "test" for side in sides.values()) == 3


def test_splits_that_repeat_their_name_or_hold_images_alone():
    sides, _, classes, _ = taken(files("training_set/training_set/cat/", 6) + files("training_set/training_set/dog/", 6)
                                 + files("test_set/test_set/cat/", 3) + files("test_set/test_set/dog/", 3))
    assert classes == ["cat", "dog"] and len(sides) == 18
    sides, _, classes, _ = taken(files("train/images/", 9) + files("val/images/", 3))
    assert classes == [] and sorted(set(sides.values())) == ["test", "train", "validation"]


def test_the_decathlon():
    names = files("Task04/imagesTr/h_", 20, ".nii.gz") + files("Task04/imagesTs/h_", 10, ".nii.gz", 20) \
        + files("Task04/labelsTr/h_", 20, ".nii.gz")
    sides, _, classes, told = taken(names)
    assert classes == [] and sorted(sides.values()).count("test") == 10 and len(sides) == 30
    assert "masks by their names: 20 files" in told


def test_masks_are_no_images():
    assert len(taken(files("images/", 9) + files("masks/", 9))[0]) == 9
    assert len(taken(files("train/images/", 9) + files("train/labels/", 9) + files("test/images/", 3))[0]) == 12
    assert len(taken(files("images/train/", 9) + files("labels/train/", 9) + files("images/test/", 3))[0]) == 12
    assert taken(files("a", 4, ".nii") + files("a", 4, "_seg.nii"))[0].keys() == set(files("a", 4, ".nii"))
    assert taken(["p1/x.nii", "p1/x_gt.nii", "p2/x.nii", "p2/x-mask.nii.gz"], "none")[0].keys() == {
        "p1/x.nii", "p2/x.nii"}
    assert len(taken(files("a", 4, "_seg.nii"))[0]) == 4  # nothing but masks: they are what is meant
    with pytest.raises(UserError, match="segmentation masks"):
        layout.arrange(files("labelsTr/", 4))


def test_val_is_the_validation_split(tmp_path):
    for side, count, start in (("train", 30, 0), ("val", 7, 100), ("test", 5, 200)):
        for name in ("cat", "dog"):
            write_many(tmp_path / "set" / side / name, count, start + 50 * (name == "dog"))
    data = dataset.load(str(tmp_path / "set"), str(tmp_path / "data"))
    assert [len(split.images) for split in data[:3]] == [60, 14, 10] and data.class_counts == [30, 30]
    shutil.rmtree(tmp_path / "set" / "test")
    data = dataset.load(str(tmp_path / "set"), str(tmp_path / "data"))
    assert len(data.validation.images) == 14 and len(data.train.images) + len(data.test.images) == 60
    assert len(data.test.images) > 0
    data = dataset.load(str(tmp_path / "set"), str(tmp_path / "data"), 4)
    assert [len(split.images) for split in data[:3]] == [4, 4, 4]


def test_splits_below_each_class():
    names = [path for name in ("cat", "dog") for side, count in (("train", 9), ("test", 3))
             for path in files(f"{name}/{side}/", count)]
    sides, labels, classes, _ = taken(names)
    assert classes == ["cat", "dog"] and all(sides[name] == name.split("/")[1] for name in names)
    undecidable(names + files("eel/", 20), "hold train/ and test/, others do not")


def test_splits_without_train_or_of_other_words_are_undecidable():
    folders, none = undecidable(files("cat/", 9) + files("dog/", 9) + files("test/", 9), "no train/ beside it")
    assert folders[2] == ["cat", "dog", "test"] and none[2] == []
    folders, _ = undecidable(files("trainA/", 9) + files("trainB/", 9) + files("testA/", 9), "splits or classes")
    assert folders[2] == ["testA", "trainA", "trainB"]
    undecidable(files("train/", 3) + files("test/", 3) + files("cat/", 30) + files("dog/", 30), "fewer images")
    _, _, classes, told = taken(files("cat/", 9) + files("train/", 9))
    assert classes == ["cat", "train"] and "train/ is taken for a class" in told


def test_what_is_beside_the_splits_is_left_out_and_named():
    names = files("train/", 20) + files("test/", 20)
    sides, _, _, told = taken([*names, *files("unlabeled/", 15)])
    assert set(sides) == set(names) and "15 in unlabeled/" in told


def test_subjects_are_no_classes():
    bids = [f"sub-0{number}/{kind}/sub-0{number}_{kind}.nii.gz" for number in range(3) for kind in ("anat", "func")]
    sides, _, classes, told = taken([*bids, "derivatives/x/sub-01_mean.nii.gz"])
    assert classes == [] and set(sides) == set(bids) and "sub-02/, 3 in all" in told and "derivatives" in told
    assert taken(bids, "folders")[2] == ["sub-00", "sub-01", "sub-02"]
    for name in ("alpha beta gamma delta eps zeta eta theta iota kappa".split(), ["IXI002", "IXI012"]):
        assert taken([path for part in name for path in files(f"{part}/", 3, ".nii")])[2] == []
    assert taken(files("AD/", 5, ".nii") + files("CN/", 5, ".nii"))[2] == ["AD", "CN"]  # words: classes
    assert taken(files("n01440764/", 30) + files("n01443537/", 30))[2] == ["n01440764", "n01443537"]  # pictures
    undecidable(files("0/", 5, ".nii") + files("1/", 5, ".nii"), "may be subjects or classes")
    undecidable(files("sub-01/", 9) + files("cat/", 9), "may be subjects")
    flat = [f"sub-{number:02d}_{kind}.nii.gz" for number in range(40) for kind in ("T1w", "T2w")]
    sides = taken(flat)[0]
    assert all(sides[f"sub-{number:02d}_T1w.nii.gz"] == sides[f"sub-{number:02d}_T2w.nii.gz"] for number in range(40))


def test_names_that_differ_in_case_alone():
    sides, labels, classes, told = taken(files("train/Cat/", 9) + files("train/dog/", 9) + files("test/cat/", 3)
                                         + files("test/Dog/", 3))
    assert classes == ["Cat", "dog"] and labels["test/cat/0.png"] == "Cat" and "one class" in told
    folders, none = undecidable(files("Cat/", 9) + files("cat/", 9), "differ in case alone")
    assert folders[2] == ["Cat", "cat"]
    letters = taken(files("A/", 9) + files("a/", 9) + files("B/", 9))[2]
    assert letters == ["A", "a", "B"]
    assert taken(files("train/A/", 9) + files("train/b/", 9) + files("test/a/", 9))[2] == ["A", "b"]


def test_a_class_in_test_alone_is_marked(tmp_path):
    for start, (side, name, count) in enumerate((("train", "cat", 30), ("train", "dog", 30), ("test", "cat", 5),
                                                 ("test", "bee", 5))):
        write_many(tmp_path / "set" / side / name, count, 100 * start)
    data = dataset.load(str(tmp_path / "set"), str(tmp_path / "data"))
    assert data.class_names == ["bee", "cat", "dog"]
    assert data.class_counts[0] == 0 and data.class_counts == data.train.labels.bincount(minlength=3).tolist()
    assert any("without a training image" in line and "bee" in line for line in summary.lines("set", data))
    assert list(summary.examples(data))[0] == "0 bee (test only)"


def test_classes_none_and_folders_reach_the_data(tmp_path, script):
    for name in ("cat", "dog"):
        write_many(tmp_path / "set" / name, 20, start=50 * (name == "dog"))
    write_many(tmp_path / "set", 20, start=200)
    where = ["--dataset", tmp_path / "set", "--data-dir", tmp_path / "data", "--output-dir", tmp_path / "out"]
    refused = script("loading.look", *where)
    assert refused.status == 1 and refused.err.count("\n") == 1 and "--classes" in refused.err
    told = script("loading.look", *where, "--classes", "folders")
    assert told.status == 0 and "classes: 2" in told.out and "left out, in no class folder: 20 files" in told.err
    assert "classes: none" in script("loading.look", *where, "--classes", "none").out
    assert script("loading.look", *where, "--classes", "both").status == 2


# ---- B: a run's own files


def test_a_run_inside_the_folder_is_no_data(tmp_path, script, monkeypatch):
    for name in ("cat", "dog"):
        write_many(tmp_path / "photos" / name, 40, start=50 * (name == "dog"))
    monkeypatch.chdir(tmp_path / "photos")
    train = [*SMALL_VQVAE, "--dataset", "."]  # with the default DATA_DIR and OUTPUT_DIR: in here
    first = script("train_vqvae", *train)
    assert first.status == 0 and "classes: 2" in first.out
    again = script("train_vqvae", *train, "--epochs", 2)
    assert again.status == 0 and "continuing output/vqvae.pt after epoch 1" in again.out, again.err
    assert "left out, the files of runs and their data: data; output" in again.err
    assert script("train_pixelcnn", *SMALL_PIXELCNN, "--batch-size", 16).status == 0
    assert script("generate", "--num-samples", 4, "--samples-dir", "mine").status == 0
    shutil.move("output", "older run")
    later = script("loading.look", "--dataset", ".", "--output-dir", "elsewhere")
    assert "80 images" in later.out and "classes: 2" in later.out and "mine; older run" in later.err
    again = script("loading.look", "--dataset", ".", "--output-dir", "elsewhere 2")  # elsewhere/dataset.png is ours
    assert "80 images" in again.out and "elsewhere" in again.err


def test_the_folder_of_images_is_no_run(tmp_path, script):
    root = write_many(tmp_path / "my photos", 20)
    outcome = script("train_vqvae", *SMALL_VQVAE, "--dataset", root, "--data-dir", tmp_path / "data", "--output-dir",
                     f"{root}/../my photos")
    assert outcome.status == 1 and "OUTPUT_DIR" in outcome.err and f"'{root}/output'" in outcome.err.replace(
        "/../my photos", "")
    (root / "vqvae.pt").write_bytes(b"a checkpoint")
    outcome = script("loading.look", "--dataset", root, "--data-dir", tmp_path / "data", "--output-dir",
                     tmp_path / "out")
    assert outcome.status == 1 and "is the directory of a run" in outcome.err and outcome.err.count("\n") == 1


def test_a_picture_that_is_called_as_ours_is_an_image(tmp_path):
    for name in ("cat", "dog"):
        write_many(tmp_path / "set" / name, 3)
        write(tmp_path / "set" / name / "dataset.png")
        (tmp_path / "set" / name / "samples.json").write_text("[1, 2]")
    assert len(layout.list_files(str(tmp_path / "set")).files) == 8


def test_hidden_files_and_macosx(tmp_path):
    write_many(tmp_path / "set" / "cat", 3)
    write_many(tmp_path / "__MACOSX" / "set" / "cat", 3)
    write(tmp_path / "set" / "._0.png")
    write(tmp_path / ".hidden" / "0.png")
    assert sorted(name for name, _, _ in layout.list_files(str(tmp_path)).files) == [
        f"set/cat/{number:03d}.png" for number in range(3)]


def test_a_data_dir_around_the_folder_does_not_hide_it(tmp_path):
    write_many(tmp_path / "data" / "photos", 20)
    assert len(folder.load(str(tmp_path / "data" / "photos"), str(tmp_path / "data"), Reading()).images) == 20
    assert len(folder.load(str(tmp_path / "data"), str(tmp_path / "data"), Reading()).images) == 20


# ---- D: equal content is the same data set


def test_a_run_goes_on_with_another_spelling_and_a_moved_folder(tmp_path, script, monkeypatch):
    for name in ("cat", "dog"):
        write_many(tmp_path / "C" / name, 40, start=50 * (name == "dog"))
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL_VQVAE, "--data-dir", "data", "--output-dir", "out"]
    assert script("train_vqvae", *flags, "--dataset", "C").status == 0
    shutil.copytree("C", "some where/else/C")
    for epochs, spelled in enumerate(("C/", "./C", str(tmp_path / "C"), "some where/else/C", "some where"), start=2):
        outcome = script("train_vqvae", *flags, "--dataset", spelled, "--epochs", epochs)
        assert outcome.status == 0 and f"after epoch {epochs - 1} of {epochs}" in outcome.out, (spelled, outcome.err)
    write(tmp_path / "C" / "cat" / "000.png", 999)
    os.utime(tmp_path / "C" / "cat" / "000.png", ns=(1, 1))
    outcome = script("train_vqvae", *flags, "--dataset", "C", "--epochs", 8)
    assert outcome.status == 1 and "DATASET (--dataset): the training images" in outcome.err


def test_reconstruct_finds_the_test_split_of_a_moved_folder_or_says_that_it_cannot(tmp_path, capfd):
    root = write_many(tmp_path / "images", 60)
    data = dataset.load(str(root), str(tmp_path / "data"))
    stored = {"images": dataset.digest(data.train),
              "data": {"dataset": str(root), "reading": Reading()._asdict(), "channels": 1, "height": 8, "width": 8,
                       "limit": 0}}

    def found(path, **more):
        args = argparse.Namespace(**{"DATASET": str(path), "DATA_DIR": str(tmp_path / "data"), "LIMIT": 0,
                                     "IMAGE_SIZE": "auto", "NUM_IMAGES": 1} | more)
        capfd.readouterr()
        return testset.find(args, stored, 1).images, capfd.readouterr()
    shutil.move(root, tmp_path / "moved" / "images")
    images, said = found(tmp_path / "moved")
    assert torch.equal(images, data.test.images) and "test split" in said.out
    assert len(found(tmp_path / "moved", LIMIT=3)[0]) == 3  # fewer to choose from; the training had all
    write(tmp_path / "moved" / "images" / "000.png", 999)
    write(tmp_path / "moved" / "images" / "001.png", 998)
    write(tmp_path / "moved" / "images" / "002.png", 997)
    images, said = found(tmp_path / "moved")
    assert len(images) == 60 and "no test split of this run" in said.err and said.err.count("no test split") == 1
    write_many(tmp_path / "half" / "cat", 5)
    write_many(tmp_path / "half", 5)  # undecidable as a data set, but a folder of images all the same
    assert len(found(tmp_path / "half")[0]) == 10


def test_a_run_from_before_there_was_a_choice_is_read(tmp_path, trained):
    shutil.copytree(trained, tmp_path / "run")
    content = torch.load(tmp_path / "run" / "vqvae.pt", weights_only=True)
    del content["data"]["reading"]["classes"]
    torch.save(content, tmp_path / "run" / "vqvae.pt")
    assert checkpoint.load(str(tmp_path / "run"), "vqvae")["data"]["reading"]["classes"] == "auto"


# ---- G: one or two volumes, and names that are taken


@pytest.mark.parametrize("volumes", [1, 2, 3])
def test_few_volumes_are_cut_with_a_gap_or_kept_apart(tmp_path, volumes):
    for number in range(volumes):
        write_nifti(tmp_path / "set" / f"v{number}.nii.gz", 60, number)
    data = dataset.load(str(tmp_path / "set"), str(tmp_path / "data"))
    where = {}
    for number in range(volumes):
        slices = folder.load(str(tmp_path / "set"), str(tmp_path / "data"), Reading())
        where |= {image.numpy().tobytes(): (file, place % 60) for place, (image, file)
                  in enumerate(zip(slices.images, slices.files))}
    places = [{where[image.numpy().tobytes()] for image in split.images} for split in data[:3]]
    assert all(places) and len(places[0]) >= 39
    for one in range(3):
        for other in range(one):
            for file, place in places[one]:
                assert all(file != beside or abs(place - there) > dataset.GAP for beside, there in places[other])
    assert bool(data.notes and "blocks of its slices" in " ".join(data.notes)) == (volumes < 3)


def test_cut():
    for count in range(2, 200):
        for shares in ({"validation": 0.05}, {"test": 0.1}, {"validation": 0.05, "test": 0.1}):
            parts = dataset.cut(count, shares)
            rows = sorted(row for part in parts.values() for row in part.tolist())
            assert len(set(rows)) == len(rows) and set(rows) <= set(range(count))
            assert len(parts["train"]) >= min(count - len(shares), count // 2)
    assert [len(part) for part in dataset.cut(100, {"validation": 0.05, "test": 0.1}, 7).values()] == [5, 7, 7]


def test_hold_out():
    chance = random.Random(0)
    for _ in range(300):
        sizes = [chance.choice([1, 1, 3, 30]) for _ in range(chance.randint(2, 30))]
        units = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
        parts = dataset.hold_out(["x", "x", *units], 2, 2 + len(units))
        validation, train = parts["validation"], parts["train"]
        assert sorted([*range(2 + len(units))[validation], *range(2 + len(units))[train]]) == [
            *range(2, 2 + len(units))]
        held, learnt = ({["x", "x", *units][row] for row in range(2 + len(units))[part]} for part in parts.values())
        assert held and learnt and not held & learnt and len(units) >= 2 * (validation.stop - validation.start)


def test_a_folder_that_is_called_as_a_data_set(tmp_path, monkeypatch, capfd, torchvision_datasets):
    monkeypatch.chdir(tmp_path)
    write_many(tmp_path / "cifar10", 20)
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "__init__", lambda *_, **__: (_ for _ in ()).throw(
        RuntimeError("no connection")))
    with pytest.raises(UserError, match="cifar10 is not in"):
        dataset.load("cifar10", "data")
    assert "`--dataset ./cifar10`" in capfd.readouterr().err
    assert len(dataset.load("./cifar10", "data").test.images) > 0
    assert "./cifar10" not in capfd.readouterr().err


# ---- the summary and the picture


def test_dataset_py_looks(tmp_path):
    for number in range(12):
        write_many(tmp_path / "set" / "train" / str(number), 5, start=10 * number)
        write_many(tmp_path / "set" / "test" / str(number), 2, start=10 * number + 500)
    (tmp_path / "set" / "broken.txt").write_text("not an image")
    command = [sys.executable, str(ROOT / "dataset.py"), "set", "--data-dir", "data", "--output-dir", "seen"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "84 images, 8 pixels high and 8 wide, grey" in told.stdout
    assert "splits: 57 train, 3 validation, 24 test" in told.stdout and "1 .txt" in told.stderr
    assert "classes: 12" in told.stdout and told.stdout.index("2 2 ") < told.stdout.index("10 10 ")
    assert told.stdout.count("\n") + told.stderr.count("\n") <= 12
    with Image.open(tmp_path / "seen" / "dataset.png") as picture:
        assert picture.text["Software"] == layout.SIGNATURE and picture.size[0] > 800
    for words, status in ((["nothing"], 1), (["set", "--classes", "x"], 2), (["set", "more"], 2)):
        failed = subprocess.run([*command[:2], *words], cwd=tmp_path, capture_output=True, text=True)
        assert failed.returncode == status and failed.stderr.count("\n") == 1, failed.stderr


@pytest.mark.parametrize("classes, each", [(0, 72), (1, 12), (12, 12), (13, 6), (41, 3), (300, 1), (2500, 1)])
def test_the_picture_shows_images_of_every_class(tmp_path, classes, each):
    count = max(12, each) * max(1, classes)
    images = torch.randint(0, 256, (count, 3, 5, 9), dtype=torch.uint8)
    labels = torch.arange(count) % max(1, classes)
    split = dataset.Split(images, labels)
    data = dataset.Data(split, split, split, [f"class of number {number} \udce4\n" for number in range(classes)])
    found = summary.examples(data)
    assert len(found) == min(max(1, classes), 2400)
    assert all(len(rows) == each for _, rows in found.values())
    summary.show("set", data, str(tmp_path))
    with Image.open(tmp_path / "dataset.png") as picture:
        assert 200 < picture.size[0] < 2000
    assert all("\n" not in line for line in summary.lines("se\nt", data))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 500), (500, 1), (300, 200), (28, 28)])
def test_the_picture_of_any_size(tmp_path, height, width):
    images = torch.zeros(20, 1, height, width, dtype=torch.uint8)
    for names in ([], ["a name that is longer than its images are wide"] * 20):
        split = dataset.Split(images, torch.arange(20) % max(1, len(names)))
        summary.show("set", dataset.Data(split, split, split, names), str(tmp_path))
        with Image.open(tmp_path / "dataset.png") as picture:
            assert max(picture.size) < 3000


def test_the_training_says_what_it_took_the_folder_for(tmp_path, script):
    for name in ("cat", "dog"):
        write_many(tmp_path / "set" / name, 40, start=50 * (name == "dog"))
    outcome = script("train_vqvae", *SMALL_VQVAE, "--dataset", tmp_path / "set", "--data-dir", tmp_path / "data",
                     "--output-dir", tmp_path / "out")
    assert outcome.status == 0 and "classes: 2 (number, name, training images): 0 cat" in outcome.out
    assert (tmp_path / "out" / "dataset.png").exists()


def test_the_index_keeps_what_the_folder_was_taken_for(tmp_path):
    write_nifti(tmp_path / "set" / "sub-01" / "a.nii", 5)
    write_nifti(tmp_path / "set" / "sub-02" / "a.nii", 5, 1)
    write_nifti(tmp_path / "set" / "sub-02" / "b.nii", 5, 2)
    for _ in range(2):  # decoded, and then from the index
        found = folder.load(str(tmp_path / "set"), str(tmp_path / "data"), Reading())
        assert set(found.units) == {"sub-01", "sub-02"} and "subjects and not classes" in " ".join(found.taken_for)
    index, = (tmp_path / "data" / "folders").glob("*/index.json")
    assert json.loads(index.read_text())["subjects"]["sub-02/b.nii"] == "sub-02"


def test_a_script_that_looks_has_every_constant_of_reading():
    assert {name.upper() for name in Reading._fields} <= cli.constants(ROOT / "loading" / "look.py").keys()

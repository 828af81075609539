"""What a folder is taken for: random layouts against what they were made to mean, and every named case."""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_PIXELCNN, SMALL_VQVAE
from images import nifti, noise, write, write_classes, write_many
from PIL import Image

import dataset
from judging import testset
from loading import folder, layout, summary
from loading.reading import Reading
from running import cli
from running.cli import UserError
from training import checkpoint


def files(prefix, count, suffix=".png", start=0):
    return [f"{prefix}{number}{suffix}" for number in range(start, start + count)]


def taken(names, classes="auto"):
    """Of every kept path its split and class, the class names, and all lines in one."""
    result = layout.arrange(names, classes)
    sides = {entry.path: entry.side for entry in result.order}
    labels = {entry.path: result.class_names[entry.label] if result.class_names else None for entry in result.order}
    return sides, labels, result.class_names, " | ".join(result.left_out + result.taken_for)


def write_nifti(path, slices, seed=0):
    return nifti(path, np.random.default_rng(seed).integers(0, 255, (8, 8, slices)).astype(np.uint8))


# ---- random layouts against a plain statement of the rule

STYLES = [("train", "val", "test"), ("Train", "Valid", "Test"), ("TRAINING", "VALIDATION", "TESTING"),
          ("training_set", "val_set", "test_set"), ("imagesTr", "imagesVal", "imagesTs"),
          ("TrainingData", "ValidationData", "TestData"), ("train-images", "dev-images", "test-images")]
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


def test_random_layouts_are_taken_for_what_they_were_made_to_be():
    chance = random.Random(0)
    for _ in range(200):
        check_layout(chance)


def check_layout(chance):
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


def test_random_studies_keep_a_subjects_files_together():
    chance = random.Random(0)
    for _ in range(100):
        check_study(chance)


def check_study(chance):
    groups = chance.choice([[""], ["AD/", "CN/"]])
    name = chance.choice(["sub-{:02d}", "sub-P{}x", "patient_{}", "case {}"]
                         + ["BraTS20_Training_{:03d}", "{:03d}_S_{:04d}"] * (len(groups) == 2))
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
    order = [(entry.side, subject_of[entry.path]) for entry in result.order]
    assert len(set(order)) == sum(one != other for one, other in zip(order, [None, *order]))  # each in one piece


# ---- the meaning of a folder


def volumes(*folders, count=5):
    return [name for folder in folders for name in files(f"{folder}/", count, ".nii")]


def pictures(**counts):
    """pictures(train__cat=3): three files in train/cat/."""
    return [name for folder, count in counts.items() for name in files(folder.replace("__", "/") + "/", count)]


BIDS = [f"sub-0{number}/{kind}/sub-0{number}_{kind}.nii.gz" for number in range(3) for kind in ("anat", "func")]
SPLIT = pictures(train__cat=10, train__dog=10, test__cat=5, test__dog=5)
HIPPOCAMPUS = files("Task04/imagesTr/h_", 20, ".nii.gz") + files("Task04/imagesTs/h_", 10, ".nii.gz", 20)


@pytest.mark.parametrize("names, lost, classes, tests, says", [
    (pictures(**{str(number): 5 for number in range(12)}), [], list(map(str, range(12))), None, "a tenth is held out"),
    (pictures(cat=8, dog=8), ["preview.png"], ["cat", "dog"], None, "preview.png"),
    (pictures(photos=20), [], [], None, "looked through photos/"),
    (pictures(cat=9, train=9), [], ["cat", "train"], None, ""),
    (SPLIT, [], ["cat", "dog"], 10, ""),
    ([f"a/b/c/{name}" for name in SPLIT], [], ["cat", "dog"], 10, "looked through a/b/c/"),
    (files("case 1/cat/", 20) + files("case 1/dog/", 20), [], ["cat", "dog"], None, "looked through"),
    ([f"set/{name}" for name in SPLIT], ["logo.png"], ["cat", "dog"], 10, "logo.png"),
    (pictures(train=6, Testing=3), [], [], 3, ""),
    (pictures(train__train__cat=6, train__train__dog=6, test__test__cat=3), [], ["cat", "dog"], 3, ""),
    (pictures(train__images=9, val__images=3), [], [], None, ""),
    (pictures(cat__train=9, cat__test=3, dog__train=9, dog__test=3), [], ["cat", "dog"], 6, ""),
    (pictures(train=20, test=20), files("unlabeled/", 15), [], 20, "15 files: unlabeled/0.png"),
    (HIPPOCAMPUS, files("Task04/labelsTr/h_", 20, ".nii.gz"), [], 10, "masks by their names: 20 files"),
    (pictures(images=9), pictures(masks=9), [], None, "masks"),
    (files("JPEGImages/", 9), files("SegmentationClass/", 9), [], None, "masks"),
    (pictures(train__images=9, test__images=3), pictures(train__labels=9), [], 3, "masks"),
    (pictures(images__train=9, images__test=3), pictures(labels__train=9), [], 3, "masks"),
    (files("a", 4, ".nii"), files("a", 4, "_seg.nii"), [], None, "masks"),
    (BIDS, ["derivatives/x/sub-01_mean.nii.gz"], [], None, "sub-00; sub-01; sub-02, 3 in all"),
    (files("sub-01/anat/", 20, ".nii"), [], [], None, "subjects"),
    (pictures(n01440764=30, n01443537=30), [], ["n01440764", "n01443537"], None, ""),
])
def test_what_the_rule_decides(names, lost, classes, tests, says):
    sides, labels, class_names, told = taken(names + lost)
    assert set(sides) == set(names) and class_names == classes and says in told and ("left out" in told) == bool(lost)
    if tests is not None:
        assert {name for name in names if "test" in name.lower() or "imagesTs" in name} == {
            name for name, side in sides.items() if side == "test"} and list(sides.values()).count("test") == tests
    assert all(label in name.split("/") for name, label in labels.items() if label)


@pytest.mark.parametrize("names, says, classes, kept, without", [
    (files("", 30) + pictures(cat=20, dog=20), "30 images are in no class folder", ["cat", "dog"], 40, 70),
    (files("", 30) + ["odd/one.png"], "30 images are in no class folder", ["odd"], 1, 31),
    (pictures(train__cat=30, train__dog=30, test=10), "10 images of the test split are in no class folder",
     ["cat", "dog"], 60, 70),
    (pictures(cat=9, dog=9, test=9), "test/ may be splits or classes", ["cat", "dog", "test"], 27, 27),
    (pictures(trainA=9, trainB=9, testA=9), "splits or classes", ["testA", "trainA", "trainB"], 27, 27),
    (pictures(seg_train=9, seg_test=9), "call splits train/, val/ and test/", ["seg_test", "seg_train"], 18, 18),
    (pictures(train=9, test1=9), "call splits train/, val/ and test/", ["test1", "train"], 18, 18),
    (pictures(train=3, test=3, cat=30, dog=30), "fewer images", ["cat", "dog", "test", "train"], 66, 66),
    (pictures(cat__train=9, cat__test=3, dog__train=9, dog__test=3, eel=20), "hold train/ and test/, others do not",
     ["cat", "dog", "eel"], 44, 44),
    (volumes("0", "1"), "may be subjects or classes", ["0", "1"], 10, 10),
    (volumes("AD", "CN"), "may be subjects or classes", ["AD", "CN"], 10, 10),
    (volumes("IXI002", "IXI012"), "call a subject's folder sub-NAME", ["IXI002", "IXI012"], 10, 10),
    (volumes("001_S_1/2012_001", "002_S_2/2013_001"), "subjects or classes", ["001_S_1", "002_S_2"], 10, 10),
    (files("sub-01/", 9) + files("cat/", 9), "may be subjects", ["cat", "sub-01"], 18, 18),
    (pictures(Cat=9, cat=9), "differ in case alone", ["Cat", "cat"], 18, 18),
    (pictures(A=9, a=9, B=9), "differ in case alone", ["A", "a", "B"], 27, 27),
    (pictures(train__Cat=9, train__dog=9, test__cat=9), "Cat/; cat/ differ in case", ["Cat", "cat", "dog"], 27, 27),
])
def test_what_the_rule_does_not_decide_is_asked(names, says, classes, kept, without):
    with pytest.raises(UserError, match=says) as error:
        layout.arrange(names)
    message = str(error.value)
    assert "`--classes folders`" in message and "`--classes none`" in message and "\n" not in message
    sides, _, class_names, told = taken(names, "folders")
    assert class_names == classes and len(sides) == kept and ("left out" in told) == (kept < len(names))
    sides, _, class_names, _ = taken(names, "none")
    assert class_names == [] and len(sides) == without and {"train", "test"} <= set(sides.values())


@pytest.mark.parametrize("names, classes, says", [
    (files("labelsTr/", 4), "auto", "segmentation masks"), (files("a", 4, "_seg.nii"), "auto", "segmentation masks"),
    (files("photos/", 4), "folders", "there are none"),
    (pictures(train=4, test__cat=3), "folders", "no training image"),
])
def test_what_is_refused_whatever_is_chosen(names, classes, says):
    with pytest.raises(UserError, match=says):
        layout.arrange(names, classes)


def test_names_are_in_the_order_of_their_numbers():
    assert sorted(["a10b2", "a9", "a10b1", "A1", "10", "9", "a"], key=layout.natural) \
        == ["9", "10", "a", "A1", "a9", "a10b1", "a10b2"]


def test_subjects_of_bids_names_and_of_numbered_folders_without_classes():
    flat = [f"sub-{number:02d}_{kind}.nii.gz" for number in range(40) for kind in ("T1w", "T2w")]
    sides = taken(flat)[0]
    assert all(sides[f"sub-{number:02d}_T1w.nii.gz"] == sides[f"sub-{number:02d}_T2w.nii.gz"] for number in range(40))
    assert taken(BIDS, "folders")[2] == ["sub-00", "sub-01", "sub-02"]
    numbered = layout.arrange(volumes("IXI002", "IXI012"), "none").subjects
    assert set(numbered.values()) == {"IXI002", "IXI012"}


def test_val_is_the_validation_split(tmp_path):
    root = write_classes(tmp_path / "set", {f"{side}/{name}": count for side, count in (("train", 30), ("val", 7),
                                                                                        ("test", 5))
                                            for name in ("cat", "dog")})
    data = dataset.load(str(root), str(tmp_path / "data"))
    assert [len(split.images) for split in data[:3]] == [60, 14, 10] and data.class_counts == [30, 30]
    shutil.rmtree(root / "test")
    data = dataset.load(str(root), str(tmp_path / "data"))
    assert len(data.validation.images) == 14 and len(data.train.images) + len(data.test.images) == 60
    assert len(data.test.images) > 0
    data = dataset.load(str(root), str(tmp_path / "data"), 4)
    assert [len(split.images) for split in data[:3]] == [4, 4, 4]


def test_a_class_in_test_alone_is_marked(tmp_path):
    root = write_classes(tmp_path / "set", {"train/cat": 30, "train/dog": 30, "test/cat": 5, "test/bee": 5})
    data = dataset.load(str(root), str(tmp_path / "data"))
    assert data.class_names == ["bee", "cat", "dog"]
    assert data.class_counts[0] == 0 and data.class_counts == data.train.labels.bincount(minlength=3).tolist()
    assert any("without a training image" in line and "bee" in line for line in summary.lines("set", data))
    assert list(summary.examples(data))[0] == "0 bee (test only)"


def test_classes_none_and_folders_reach_the_data(tmp_path, script):
    root = write_classes(tmp_path / "set", {"cat": 20, "dog": 20, ".": 20})
    where = ["--dataset", root, "--data-dir", tmp_path / "data", "--output-dir", tmp_path / "out"]
    refused = script("loading.look", *where)
    assert refused.status == 1 and refused.err.count("\n") == 1 and "--classes" in refused.err
    told = script("loading.look", *where, "--classes", "folders")
    assert told.status == 0 and "classes: 2" in told.out and "left out, in no folder of a class" in told.err
    assert "classes: none" in script("loading.look", *where, "--classes", "none").out
    assert script("loading.look", *where, "--classes", "both").status == 2


# ---- B: a run's own files


def test_a_run_inside_the_folder_is_no_data(tmp_path, script, monkeypatch):
    monkeypatch.chdir(write_classes(tmp_path / "photos", {"cat": 40, "dog": 40}))
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
        write(tmp_path / "set" / name / "dataset.png", noise(8, 8))
        (tmp_path / "set" / name / "samples.json").write_text("[1, 2]")
    assert len(layout.list_files(str(tmp_path / "set")).files) == 8


def test_hidden_files_and_macosx(tmp_path):
    write_many(tmp_path / "set" / "cat", 3)
    write_many(tmp_path / "__MACOSX" / "set" / "cat", 3)
    write(tmp_path / "set" / "._0.png", noise(8, 8))
    write(tmp_path / ".hidden" / "0.png", noise(8, 8))
    assert sorted(name for name, _, _ in layout.list_files(str(tmp_path)).files) == [
        f"set/cat/{number:04d}.png" for number in range(3)]


def test_a_data_dir_around_the_folder_does_not_hide_it(tmp_path):
    write_many(tmp_path / "data" / "photos", 20)
    assert len(folder.load(str(tmp_path / "data" / "photos"), str(tmp_path / "data"), Reading()).images) == 20
    assert len(folder.load(str(tmp_path / "data"), str(tmp_path / "data"), Reading()).images) == 20


# ---- D: equal content is the same data set


def test_a_run_goes_on_with_another_spelling_and_a_moved_folder(tmp_path, script, monkeypatch):
    write_classes(tmp_path / "C", {"cat": 40, "dog": 40})
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL_VQVAE, "--data-dir", "data", "--output-dir", "out"]
    assert script("train_vqvae", *flags, "--dataset", "C").status == 0
    shutil.copytree("C", "some where/else/C")
    for epochs, spelled in enumerate(("C/", "./C", str(tmp_path / "C"), "some where/else/C", "some where"), start=2):
        outcome = script("train_vqvae", *flags, "--dataset", spelled, "--epochs", epochs)
        assert outcome.status == 0 and f"after epoch {epochs - 1} of {epochs}" in outcome.out, (spelled, outcome.err)
    os.utime(write(tmp_path / "C" / "cat" / "0000.png", noise(8, 8, seed=999)), ns=(1, 1))
    outcome = script("train_vqvae", *flags, "--dataset", "C", "--epochs", 8)
    assert outcome.status == 1 and "DATASET (--dataset): the training images" in outcome.err


def test_reconstruct_finds_the_test_split_of_a_moved_folder_or_says_that_it_cannot(tmp_path, capfd, monkeypatch):
    root = write_many(tmp_path / "images", 60, 8, 8)
    data = dataset.load(str(root), str(tmp_path / "data"))
    stored = {"images": dataset.digest(data.train),
              "data": {"dataset": str(root), "reading": Reading()._asdict(), "channels": 1, "height": 8, "width": 8,
                       "limit": 0}}

    def found(path, **more):
        args = argparse.Namespace(**{"DATASET": str(path), "DATA_DIR": str(tmp_path / "data"), "LIMIT": 0,
                                     "IMAGE_SIZE": "auto", "NUM_IMAGES": 1} | more)
        capfd.readouterr()
        return testset.find(args, stored, 1).images, capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    for path in (root, f"{root}/", "images", "./images/../images"):
        assert torch.equal(found(path)[0], data.test.images)
    shutil.move(root, tmp_path / "moved" / "images")
    images, said = found(tmp_path / "moved")
    assert torch.equal(images, data.test.images) and "test split" in said.out
    assert len(found(tmp_path / "moved", LIMIT=3)[0]) == 3  # fewer to choose from; the training had all
    for number in range(3):
        write(tmp_path / "moved" / "images" / f"{number:04d}.png", noise(8, 8, seed=999 - number))
    images, said = found(tmp_path / "moved")
    assert len(images) == 60 and said.err.count("does not hold the training images of this run") == 1
    write_classes(tmp_path / "half", {"cat": 5, ".": 5})  # undecidable, but images all the same
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
    slices = folder.load(str(tmp_path / "set"), str(tmp_path / "data"), Reading())
    where = {image.numpy().tobytes(): (file, place % 60) for place, (image, file)
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


def test_a_folder_that_is_called_as_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_many(tmp_path / "glyphs", 20)
    assert dataset.load("./glyphs", "data").test.images.shape[2:] == (6, 8)


# ---- the summary and the picture


def test_dataset_py_looks(tmp_path):
    write_classes(tmp_path / "set", {f"{side}/{number}": count for side, count in (("train", 5), ("test", 2))
                                     for number in range(12)})
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

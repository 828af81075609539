"""The masked prior: what it sees, its masks, the order and the rounds of drawing, and the scripts that take it."""
import csv
import json
import math
import shutil
from fractions import Fraction

import pytest
import torch
from conftest import SMALL
from PIL import Image

import complete
import train_pixelcnn
from priors import codes as codes_module
from priors import masked, runs
from priors.draws import Draw, draw, guide, uniforms
from priors.masked import Masked, MaskedConfig, fixed_masks, halton_order, masks, nats_in_rounds, plan_rounds, schedule
from priors.sampler import draw_grids, make_sampler
from training import checkpoint, loop


def random_model(num_codes=7, num_classes=2, seed=0, std=0.5):
    torch.manual_seed(seed)
    model = Masked(MaskedConfig(num_codes, num_classes, hidden=8, layers=2, kernel_size=3, heads=2)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=std)
    return model


# ---- what it sees


@pytest.mark.parametrize("size", [(3, 4), (1, 6), (5, 1)])
@torch.no_grad()
def test_a_hidden_code_sees_every_visible_one_on_both_sides(size):
    model, labels = random_model(), torch.tensor([1])
    codes = torch.randint(7, (1, *size))
    hidden = size[0] * size[1] // 2
    codes.view(-1)[hidden] = -1
    before = model(codes, labels).flatten(2)[..., hidden]
    for place in set(range(codes.numel())) - {hidden}:
        changed = codes.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 1) % 7
        assert (model(changed, labels).flatten(2)[..., hidden] - before).abs().max() > 1e-5


@torch.no_grad()
def test_the_loss_is_of_hidden_codes_and_shows_the_network_none():
    model, seen = random_model(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    codes, labels, hidden = torch.randint(7, (5, 3, 4)), torch.tensor([0, 1, 2, 0, 1]), fixed_masks(5, 3, 4)
    found = masked.terms(model, codes, labels, hidden)
    [shown] = seen
    assert (shown[hidden] == -1).all() and torch.equal(shown[~hidden], codes[~hidden])
    nats = sum(-model(shown[i:i + 1], labels[i:i + 1])[0, :, row, column].log_softmax(0)[codes[i, row, column]]
               for i, row, column in hidden.nonzero().tolist())
    torch.testing.assert_close(found["hidden"], torch.stack([nats, hidden.sum().float()]))
    torch.testing.assert_close(found["hidden_nll"], nats / (5 * 12 * 2 / math.pi))


def test_the_measure_of_a_split_weighs_every_hidden_code_alike():
    """In batches of unequal size, from codes as they are stored."""
    model = random_model()
    codes, labels, hidden = torch.randint(7, (5, 3, 4)), torch.tensor([0, 1, 2, 0, 1]), fixed_masks(5, 3, 4)
    sums = loop.sum_over(masked.terms, model, 2, codes.byte(), labels, hidden)
    result = masked.summarise(sums)
    chances = model(codes.masked_fill(hidden, -1), labels).softmax(1).gather(1, codes[:, None])[:, 0][hidden]
    assert result == {"hidden_nll": pytest.approx(-chances.log().mean().item(), rel=1e-5),
                      "bits_per_hidden_code": pytest.approx(-chances.log2().mean().item(), rel=1e-5)}
    sums = codes_module.hidden_sums(model, codes.byte(), labels, torch.arange(5).split(3))
    assert masked.summarise(sums) == pytest.approx(result, rel=1e-5)


def test_it_learns_what_it_is_shown():
    """Two grids, one for each class: after a few steps either class gives its own with little doubt."""
    torch.manual_seed(0)
    model = Masked(MaskedConfig(7, 2, hidden=16, layers=2, kernel_size=3, heads=2))
    codes, labels = torch.randint(7, (2, 3, 3)), torch.tensor([0, 1])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        batch = codes.repeat(8, 1, 1), labels.repeat(8), masked.random_masks(16, 3, 3)
        masked.terms(model, *batch)["hidden_nll"].backward()
        optimizer.step()
    for steps in (1, 0):
        drawn = make_sampler(model.eval(), 2, 3, Draw(temperature=0, steps=steps))(labels, torch.zeros(2, 3, 3))
        assert torch.equal(drawn, codes)


# ---- masks


def test_a_mask_hides_the_share_of_the_cosine_schedule_and_at_least_one():
    chance = torch.rand(200, 1 + 12)
    chance[:4, 0] = torch.tensor([0.0, 1 / 3, 2 / 3, 1 - 2**-24])
    hidden = masks(chance, 3, 4)
    assert hidden.shape == (200, 3, 4)
    counts = hidden.flatten(1).sum(1).tolist()
    assert counts[0] == 12 and counts[2] in (6, 7) and counts[3] == 1  # cos(pi / 3) = 1/2, to within rounding
    assert counts[4:] == [max(1, math.ceil(12 * math.cos(math.pi / 2 * r))) for r in chance[4:, 0].tolist()]


def test_masks_hide_every_place_alike():
    share = masked.random_masks(4000, 2, 5).float().mean(0)
    expected = sum(math.ceil(10 * math.cos(math.pi / 2 * (i + 0.5) / 1000)) for i in range(1000)) / 10_000
    assert (share - expected).abs().max() < 5 * 0.5 / 4000**0.5


def test_a_fixed_mask_depends_on_its_number_alone():
    few, many = fixed_masks(3, 4, 5), fixed_masks(9, 4, 5)
    assert torch.equal(few, many[:3]) and len(many.flatten(1).unique(dim=0)) > 5


# ---- the order and the rounds


def plain_order(height, width):
    """The Halton sequence by fractions, cell by cell."""
    order, i = [], 1
    while len(order) < height * width:
        place = []
        for base, side in ((2, height), (3, width)):
            point, weight, number = Fraction(0), Fraction(1, base), i
            while number:
                point, weight, number = point + number % base * weight, weight / base, number // base
            place.append(math.floor(point * side))
        if tuple(place) not in order:
            order.append(tuple(place))
        i += 1
    return order


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (1, 5), (6, 1), (1, 1), (9, 14), (16, 16)])
def test_the_order_is_the_halton_sequence(size):
    order = [divmod(place, size[1]) for place in halton_order(*size).tolist()]
    assert order == plain_order(*size)
    if size == (4, 4):  # (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9)
        assert order[:4] == [(2, 1), (1, 2), (3, 0), (0, 1)]


def test_the_order_fills_the_grid_evenly():
    order = halton_order(16, 16)[:64]
    quarters = torch.bincount(order // 16 // 8 * 2 + order % 16 // 8, minlength=4)
    assert quarters.min() >= 15 and quarters.max() <= 17


def test_rounds_follow_the_cosine_and_draw_a_code_each():
    assert schedule(49, 8) == [1, 3, 5, 6, 7, 9, 9, 9]
    assert schedule(5, 0) == [1] * 5 and schedule(3, 8) == [1] * 3 and schedule(9, 1) == [9] and schedule(0, 8) == []
    for count in (1, 2, 7, 49, 256, 1024):
        for steps in (1, 2, 5, 16, count - 1, count, count + 3):
            sizes = schedule(count, steps)
            assert sum(sizes) == count and min(sizes) >= 1 and len(sizes) == min(steps or count, count)


def test_only_hidden_codes_have_a_round():
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[1, :2] = True
    rounds = plan_rounds(hidden, 3)
    assert (rounds[~hidden] == -1).all()
    assert torch.bincount(rounds[1, :2].flatten()).tolist() == schedule(8, 3)


# ---- drawing


@torch.no_grad()
def plain(model, labels, uniform, known, steps, guidance, **options):
    """One grid after the other, one code after the other, with the whole network on the whole grid for each round."""
    grids = known.clone()
    for grid, label, chance in zip(grids, labels, uniform):
        left = [place for place in plain_order(*grid.shape) if grid[place] < 0]
        count, rounds = len(left), min(steps or len(left), len(left))
        for number in range(1, rounds + 1):
            still = math.floor(min(count * math.cos(math.pi / 2 * number / rounds), count - number))
            logits = model(grid[None], label[None])
            if guidance != 1:
                logits = guide(logits, model(grid[None], torch.full_like(label[None], model.num_classes)), guidance)
            now, left = left[:len(left) - still], left[len(left) - still:]
            for place in now:
                grid[place] = draw(logits[(slice(None), slice(None), *place)], chance[place][None], **options)[0]
    return grids


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("given", [False, True])
def test_same_codes_as_the_plain_loop(steps, guidance, given):
    for seed, size in enumerate([(3, 5), (4, 4), (1, 7)]):
        model = random_model(9, 3, seed, std=0.7)
        options = [{}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 3}][seed]
        labels, uniform = torch.tensor([0, 3, 1, 2]), uniforms(seed, 0, 4, *size)
        known = torch.full(uniform.shape, -1)
        if given:  # another number of codes in every grid, and all of the last
            known = torch.where(torch.rand(uniform.shape) < torch.tensor([0.2, 0.5, 0.8, 1.0])[:, None, None],
                                torch.randint(9, uniform.shape), -1)
        expected = plain(model, labels, uniform, known, steps, guidance, **options)
        sampler = make_sampler(model, 5, size[1], Draw(**options, guidance=guidance, steps=steps))
        for _ in range(2):  # twice: nothing of one call may be left for the next
            assert torch.equal(sampler(labels, uniform, known if given else None), expected)
        assert torch.equal(expected[known >= 0], known[known >= 0])


def test_what_is_given_counts_wherever_it_lies():
    model, uniform, labels = random_model(9), uniforms(0, 0, 40, 4, 4), torch.zeros(40, dtype=torch.int64)
    free = make_sampler(model, 40, 4)(labels, uniform)
    for rows in (slice(0, 2), slice(2, 4)):
        known = torch.full((40, 4, 4), -1)
        known[:, rows] = torch.randint(9, (40, 2, 4))
        codes = make_sampler(model, 40, 4)(labels, uniform, known)
        assert torch.equal(codes[:, rows], known[:, rows]) and not torch.equal(codes[known < 0], free[known < 0])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_depends_on_its_number_alone(guidance):
    model, labels = random_model(9, 3), torch.arange(7) % 3
    known = torch.where(torch.rand(7, 4, 4) < torch.linspace(0, 0.9, 7)[:, None, None], 5, -1)
    for given in (None, known):
        drawn = {size: torch.cat(list(draw_grids(model, labels, (4, 4), 5, size, Draw(guidance=guidance, steps=5),
                                                 known=given))) for size in (7, 2, 3)}
        assert torch.equal(drawn[2], drawn[7]) and torch.equal(drawn[3], drawn[7])
    [other] = draw_grids(model, labels, (4, 4), 6, 7, Draw(guidance=guidance, steps=5))
    assert not torch.equal(other, drawn[7])


@pytest.mark.parametrize("steps, passes", [(0, 12), (5, 5), (20, 12)])
def test_a_round_is_one_pass_of_the_network_and_rows_are_counted(steps, passes):
    model, seen, rows = random_model(), [], []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    labels = torch.zeros(5, dtype=torch.int64)
    for guidance, batch in ((1.0, 5), (2.0, 10)):
        seen.clear()
        rows.clear()
        sampler = make_sampler(model, 5, 4, Draw(guidance=guidance, steps=steps))
        sampler(labels, uniforms(0, 0, 5, 3, 4), on_row=lambda: rows.append(len(seen)))
        assert seen == [batch] * passes and len(rows) == 3 and rows[-1] == passes


def test_wrong_sizes_are_refused():
    sampler = make_sampler(random_model(), 2, 4)
    for shape in [(3, 4, 4), (2, 4, 5), (0, 4, 4)]:
        with pytest.raises(ValueError):
            sampler(torch.zeros(shape[0], dtype=torch.int64), torch.zeros(shape))


@pytest.mark.parametrize("steps", [0, 2])
@torch.no_grad()
def test_samples_follow_the_product_of_conditionals_in_the_order(steps):
    """2x2 grids of 3 codes: 81 of them, each with the probability with which the rounds draw it."""
    model, order = random_model(3, 1, std=0.4), plain_order(2, 2)
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    labels, exact = torch.zeros(81, dtype=torch.int64), torch.ones(81)
    seen = torch.full_like(grids, -1)
    for now in [order[:2], order[2:]] if steps else [[place] for place in order]:
        chances = model(seen, labels).softmax(1).gather(1, grids[:, None])[:, 0]
        for row, column in now:
            exact *= chances[:, row, column]
            seen[:, row, column] = grids[:, row, column]
    assert exact.sum().item() == pytest.approx(1, abs=1e-5)
    nats = nats_in_rounds(model, grids, labels, torch.zeros(81, 2, 2, dtype=torch.bool), steps)
    torch.testing.assert_close(nats, -exact.log(), rtol=1e-4, atol=1e-4)
    count = 40_000
    chance = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0))
    drawn = make_sampler(model, count, 2, Draw(steps=steps))(torch.zeros(count, dtype=torch.int64), chance)
    place = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    expected = exact * count
    chi_squared = ((torch.bincount(place, minlength=81) - expected) ** 2 / expected)[expected >= 5].sum()
    degrees = int((expected >= 5).sum()) - 1
    assert degrees > 20 and chi_squared < degrees + 4 * (2 * degrees) ** 0.5  # four standard deviations


@torch.no_grad()
def test_completion_bits_are_of_hidden_codes_given_the_rest():
    """Of all ways to fill in what is hidden, the chances sum to 1, for a masked prior and for one in raster order."""
    from test_priors import randomised
    given = torch.tensor([[True, False, True], [False, False, True]])
    filled = torch.cartesian_prod(*[torch.arange(7)] * 3)
    codes = torch.tensor([[1, 0, 3], [0, 0, 6]]).repeat(len(filled), 1, 1)
    codes[:, ~given] = filled
    labels = torch.ones(len(filled), dtype=torch.int64)
    for model, steps in ((random_model(), 0), (random_model(), 2), (randomised("pixelcnn"), 0)):
        bits = codes_module.completion_bits(model, codes, labels, given, steps)
        assert bits.shape == (343,) and bits.std() > 0.01
        if isinstance(model, Masked):
            assert (2.0 ** -bits).sum().item() == pytest.approx(1, abs=1e-4)
    chances = model(codes, labels).log_softmax(1).gather(1, codes[:, None])[:, 0]  # the last: a PixelCNN
    torch.testing.assert_close(bits, -chances[:, ~given].sum(1) / math.log(2))


# ---- the scripts


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """The small run with a masked prior beside its PixelCNN."""
    from running import cli
    output = tmp_path_factory.mktemp("masked") / "run"
    output.mkdir()
    for name in ("vqvae.pt", "pixelcnn.pt"):
        shutil.copy(trained / name, output)
    train_pixelcnn.main(cli.parse(vars(train_pixelcnn), [*SMALL, "--output-dir", str(output), "--prior", "masked",
                                                         "--hidden", "16", "--layers", "2", "--sample-every", "1"]))
    return output


def drawn_by(script, name, run, *flags):
    """The prior that a script says it drew from."""
    outcome = script(name, "--output-dir", run, "--device", "cpu", *flags)
    assert outcome.status == 0, outcome.err
    return outcome.out.split(".pt")[0].split()[-1]


def test_its_measure_has_a_name_of_its_own(run, script, tmp_path):
    with open(run / "masked_history.csv", newline="") as file:
        [row] = csv.DictReader(file)
    assert set(row) == {"epoch"} | {f"{split}_{name}" for split in ("train", "validation")
                                    for name in ("hidden_nll", "bits_per_hidden_code")}
    assert (run / "samples" / "masked_epoch_001.png").exists()
    output = shutil.copytree(run, tmp_path / "run")
    outcome = script("train_pixelcnn", *SMALL, "--output-dir", output, "--prior", "masked", "--hidden", 16,
                     "--layers", 2, "--sample-every", 1)
    told = outcome.out.splitlines()[-2]
    assert told.startswith("test: hidden codes given the rest ") and " bits each; uniform codes: 4.0" in told
    assert "per image" not in told


FEW = ["--num-images", 2, "--num-completions", 1]


def test_it_is_drawn_from_where_codes_are_given_on_both_sides(script, run, tmp_path):
    for mask in ("border", "center", "bottom", "left", "right"):
        assert drawn_by(script, "complete", run, *FEW, "--mask", mask) == "masked"
    assert drawn_by(script, "complete", run, *FEW) == "pixelcnn"
    assert drawn_by(script, "complete", run, *FEW, "--mask", "center", "--prior", "pixelcnn") == "pixelcnn"
    assert drawn_by(script, "complete", run, *FEW, "--prior", "masked") == "masked"
    for box, prior in (((0, 0, 28, 8), "pixelcnn"), ((0, 8, 28, 28), "masked")):
        picture = Image.new("L", (28, 28), 0)
        picture.paste(255, box)
        picture.save(tmp_path / "mask.png")
        assert drawn_by(script, "complete", run, *FEW, "--mask", tmp_path / "mask.png") == prior


def test_its_loss_is_not_compared_with_a_likelihood(script, run, tmp_path):
    output = shutil.copytree(run, tmp_path / "run")
    stored = torch.load(output / "masked.pt", weights_only=True)
    stored["training"]["history"] = [{"validation_hidden_nll": 1e-6}]
    torch.save(stored, output / "masked.pt")
    assert drawn_by(script, "generate", output, "--num-samples", 2) == "pixelcnn"
    assert drawn_by(script, "generate", output, "--num-samples", 2, "--prior", "masked") == "masked"
    stored = torch.load(output / "pixelcnn.pt", weights_only=True)
    del stored["training"]
    torch.save(stored, output / "pixelcnn.pt")  # its likelihood is unknown, and it is an exact one yet
    assert drawn_by(script, "generate", output, "--num-samples", 2) == "pixelcnn"
    (output / "pixelcnn.pt").unlink()
    assert drawn_by(script, "generate", output, "--num-samples", 2) == "masked"
    assert drawn_by(script, "complete", output, *FEW) == "masked"


def test_where_it_is_damaged_another_prior_completes(script, run, tmp_path):
    output = shutil.copytree(run, tmp_path / "run")
    (output / "masked.pt").write_bytes(b"no checkpoint")
    outcome = script("complete", "--output-dir", output, *FEW, "--mask", "center")
    assert outcome.status == 0 and "by pixelcnn.pt" in outcome.out and "left out: " in outcome.err
    outcome = script("complete", "--output-dir", output, *FEW, "--prior", "masked")
    assert outcome.status == 1 and "masked.pt is no file of torch" in outcome.err and outcome.err.count("\n") == 1


def test_the_steps_of_a_sample_are_told_and_count(script, run, tmp_path):
    output = shutil.copytree(run, tmp_path / "run")
    stored = torch.load(output / "masked.pt", weights_only=True)
    torch.manual_seed(0)
    for weight in stored["model"].values():  # it is hardly trained: with large weights the codes of a round matter
        weight.normal_(std=0.5)
    torch.save(stored, output / "masked.pt")

    def drawn(*flags):
        assert script("generate", "--output-dir", output, "--num-samples", 4, *flags).status == 0
        settings = json.loads((output / "samples.json").read_text())
        return settings["STEPS"], [(output / f"sample_{i}.png").read_bytes() for i in range(4)]

    assert [drawn("--prior", "masked", "--steps", steps)[0] for steps in (16, 0, 2)] == [16, 0, 2]
    assert drawn("--prior", "masked", "--steps", 49)[1] == drawn("--prior", "masked", "--steps", 0)[1] \
        != drawn("--prior", "masked", "--steps", 2)[1]
    assert drawn("--steps", 2) == drawn("--steps", 16)  # a PixelCNN draws code by code
    assert drawn()[0] == 0


def test_complete_says_what_the_hidden_codes_take(script, run):
    def told(*flags):
        outcome = script("complete", "--output-dir", run, *FEW, "--mask", "center", *flags)
        return outcome.out.splitlines()[0]

    hidden = int((~complete.read_mask("center", 28, 28, 4)).sum())
    assert told("--steps", 3).startswith(f"the {hidden} hidden codes of an original take ")
    assert told("--steps", 3).endswith("by masked.pt, drawn in 3 rounds, each from the codes that are given or of "
                                       "earlier rounds")
    assert f"in {hidden} rounds" in told("--steps", 0) and f"in {hidden} rounds" in told("--steps", 1000)
    assert told("--prior", "pixelcnn").endswith("by pixelcnn.pt, drawn in raster order, each from the codes before it")


EVALUATED = ["--num-samples", 60, "--classifier-epochs", 1, "--batch-size", 25, "--device", "cpu"]


@torch.no_grad()
def test_its_row_says_bits_of_hidden_codes_and_nothing_that_could_be_compared(script, run, tmp_path):
    output = shutil.copytree(run, tmp_path / "run")
    outcome = script("evaluate", "--output-dir", output, *EVALUATED)
    assert outcome.status == 0, outcome.err
    rows = json.loads((output / "evaluation.json").read_text())["rows"]
    assert "bits_per_image" not in rows["masked"] and "bits/hidden" in outcome.out
    assert [name for name in rows if "bits_per_hidden_code" in rows[name]] == ["masked"]
    told = script("train_pixelcnn", *SMALL, "--output-dir", output, "--prior", "masked", "--hidden", 16, "--layers", 2,
                  "--sample-every", 1).out
    assert f"{rows['masked']['bits_per_hidden_code']:.3f} bits each; uniform" in told
    assert "fewest bits per image: masked" not in outcome.out
    (output / "pixelcnn.pt").unlink()
    outcome = script("evaluate", "--output-dir", output, *EVALUATED, "--steps", 3)
    assert "away from samples of masked" in outcome.out and "fewest bits per image: " in outcome.out
    again = json.loads((output / "evaluation.json").read_text())["rows"]
    assert again["masked"]["frechet"] != rows["masked"]["frechet"]


def test_ablation_compares_numbers_of_rounds(script, run, tmp_path):
    output = shutil.copytree(run, tmp_path / "run")
    for prior, expected in (("masked", {"masked, 2 rounds", "masked, all rounds"}),
                            ("pixelcnn", set())):
        outcome = script("ablation", "--output-dir", output, *EVALUATED, "--prior", prior, "--step-counts", "2 0")
        assert outcome.status == 0, outcome.err
        rows = json.loads((output / "ablation.json").read_text())["rows"]
        assert {name for name in rows if "rounds" in name} == expected == {name for name in rows
                                                                          if "seconds" in rows[name]}
        assert all(rows[name]["seconds"] > 0 and "frechet" in rows[name] for name in expected)


def test_it_is_built_again_as_it_was_saved(run):
    stored = checkpoint.load(str(run), "masked")
    model = runs.build(stored)
    assert isinstance(model, Masked) and stored["grid"] == [7, 7] and model.config.num_codes == 16

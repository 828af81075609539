"""step.c, the samplers' steps in C: where it is built, where it is not, and that it gives what torch gives."""
import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch
from test_sampler import kept  # noqa: F401  (a fixture)

import native
from modules import guide
from priors import PRIORS
from sampler import draw, make_sampler, uniforms

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler builds step.c here")
SIZES = {"pixelcnn": {"hidden": 48, "layers": 6, "kernel_size": 5},
         "transformer": {"hidden": 96, "layers": 3, "kernel_size": 3, "heads": 4}}


def model_of(prior, **sizes):
    torch.manual_seed(0)
    network, config = PRIORS[prior]
    model = network(config(num_codes=70, num_classes=3, **SIZES[prior] | sizes)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.15)
    return model


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache folder, and no library that was built before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path / "vqvae"
    native.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("inputs", [1, 2, 4, 7])
@pytest.mark.parametrize("prior, sizes", [("pixelcnn", {}), ("pixelcnn", {"hidden": 33, "kernel_size": 3}),
                                          ("transformer", {}), ("transformer", {"hidden": 42, "heads": 1}),
                                          ("transformer", {"hidden": 18, "heads": 6})])
def test_steps_in_c_give_the_logits_of_torch(prior, sizes, inputs, monkeypatch, kept):  # noqa: F811
    model, labels, uniform = model_of(prior, **sizes), torch.arange(inputs) % 3, uniforms(0, 0, inputs, 9, 11)
    logits, codes = {}, {}
    for limit in (0, 7):
        monkeypatch.setattr(native, "INPUTS", limit)
        kept.clear()
        codes[limit], logits[limit] = make_sampler(model, inputs, 11)(labels, uniform), torch.stack(kept)
    assert torch.equal(codes[0], codes[7])
    torch.testing.assert_close(logits[0], logits[7], atol=1e-4, rtol=1e-4)
    assert not torch.equal(logits[0], logits[7])  # they are not computed in the same way


@needs_compiler
@pytest.mark.parametrize("guidance", [1.0, 1.5, 0.0])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5, 1e-30])
def test_codes_drawn_in_c_are_those_of_torch(temperature, guidance):
    """At the ends of [0, 1) rounding decides: there it must be a possible code."""
    torch.manual_seed(0)
    logits = 4 * torch.randn(600 if guidance == 1 else 1200, 70)
    uniform, known = torch.rand(600, 3), torch.full((600, 3), -1)
    uniform[:50], uniform[50:100], known[100:150] = 0, 1 - 2**-24, 5
    codes = torch.full((600, 3), -7)
    native.choose(logits, guidance, temperature, uniform, known, codes)(1)
    guided = logits if guidance == 1 else guide(*logits.chunk(2), guidance)
    expected = torch.where(known[:, 1] >= 0, known[:, 1], draw(guided, uniform[:, 1], temperature))
    assert torch.equal(codes[100:, 1], expected[100:])
    chance = (guided / max(temperature, 1e-3)).double().softmax(1)
    assert (chance[:100].gather(1, codes[:100, 1:2]) > 1e-38).all()
    assert (codes[:, [0, 2]] == -7).all()


@pytest.mark.parametrize("prior", SIZES)
def test_only_small_batches_take_their_steps_in_c(prior, monkeypatch):
    def no_build():
        raise AssertionError
    monkeypatch.setattr(native, "library", no_build)
    make_sampler(model_of(prior), native.INPUTS + 1, 3)
    make_sampler(model_of(prior), native.INPUTS // 2 + 1, 3, guidance=2.0)  # the network sees the batch twice
    assert not native.pays(1, torch.device("cuda"))
    with pytest.raises(AssertionError):
        native.pays(1, torch.device("cpu"))


@needs_compiler
def test_the_library_is_built_once(cache, monkeypatch):
    assert native.library() is not None
    [built] = cache.iterdir()
    assert (cache.stat().st_mode & 0o77) == 0
    native.library.cache_clear()
    monkeypatch.setattr(native.subprocess, "run", None)  # it is not built again
    assert native.library() is not None
    assert list(cache.iterdir()) == [built]


def no_compiler(monkeypatch, cache):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")


def another_compiler(monkeypatch, cache):
    monkeypatch.setenv("CC", "/no/such/compiler")


def an_open_quote(monkeypatch, cache):
    monkeypatch.setenv("CC", "'cc")


def failing_compiler(monkeypatch, cache):
    monkeypatch.setenv("CC", shutil.which("false") or sys.executable)


def a_file_in_the_way(monkeypatch, cache):
    cache.write_text("")


def damaged_library(monkeypatch, cache):
    cache.mkdir()
    monkeypatch.setattr(Path, "exists", lambda path: True)


@pytest.mark.parametrize("obstacle", [no_compiler, another_compiler, an_open_quote, failing_compiler,
                                      a_file_in_the_way, damaged_library])
def test_without_the_library_all_goes_on_with_torch(obstacle, cache, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        obstacle(patch, cache)
        assert native.library() is None
    codes = make_sampler(model_of("transformer"), 1, 4)(torch.zeros(1, dtype=torch.int64), uniforms(0, 0, 1, 4, 4))
    assert codes.shape == (1, 4, 4)
    assert capfd.readouterr() == ("", "")


def test_this_machine_builds_it():
    """Linux with a compiler is where the tests run; elsewhere nothing is known."""
    if platform.system() != "Linux" or not shutil.which("cc"):
        pytest.skip("not Linux with a C compiler")
    assert native.library() is not None

"""Shared fixtures: a small random network, images, strict settings of JAX."""

import os
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

pytest.register_assert_rewrite("helpers")
from helpers.images import smooth_image  # noqa: E402

pytest_plugins = ["helpers.checkpoints", "helpers.faulty_runs"]  # fixtures of several test files

# Before any array exists: four CPU devices for tests with several devices; implicit broadcasts and
# large captured constants are errors (warnings are errors, see pyproject.toml).
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 2_000)

QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
# A folder for compiled programs, which later test runs load. Off by default: not yet measured.
PROGRAMS = os.environ.get("NST_JAX_TEST_PROGRAMS", "")


def set_program_cache(folder):
    """Set the folder in which JAX keeps compiled programs; "" for none."""
    jax.config.update("jax_enable_compilation_cache", bool(folder))
    jax.config.update("jax_compilation_cache_dir", folder or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    compilation_cache.reset_cache()  # JAX reads these settings only once


def compile_quickly(quick):
    """Choose whether programs are compiled without most optimisations, also in child processes.

    Most programs of the tests run once, on a few pixels, so compilation takes most of the time.
    Only these programs are kept for later runs.
    """
    os.environ[QUICK] = str(quick)
    if jax.config.read(QUICK.lower()) != quick:
        jax.config.update(QUICK.lower(), quick)
        set_program_cache(PROGRAMS if quick else "")
        jax.clear_caches()  # their keys do not include this setting


set_program_cache(PROGRAMS)
compile_quickly(True)

PILLOWS_LIMIT = Image.MAX_IMAGE_PIXELS
TINY_CHANNELS = (4, 6, 8, 10, 12)


@pytest.hookimpl(tryfirst=True)  # before slow tests are deselected
def pytest_collection_modifyitems(items):
    seen = Counter()
    for item in items:
        name = item.nodeid.split("[")[0]
        seen[name] += 1
        if "sampled" in item.keywords and seen[name] > 1:
            item.add_marker("slow")
    # Tests marked `optimized` are last in each file: a change of this setting clears all programs.
    items.sort(key=lambda item: (str(item.path), "optimized" in item.keywords))
    missing = pytest.mark.skip(reason="NST_JAX_WEIGHTS does not name VGG-19 weights")
    no_gpu = pytest.mark.skip(reason="no GPU")
    for item in items:
        if item.get_closest_marker("weights") and not os.environ.get("NST_JAX_WEIGHTS"):
            item.add_marker(missing)
        if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
            item.add_marker(no_gpu)


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test and of its module
def pytest_runtest_setup(item):
    compile_quickly(item.get_closest_marker("optimized") is None)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Drop the programs of a module: those of all modules together would fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def pixel_limit(monkeypatch):
    """Reset Pillow's limit, which the command line sets for its process.

    The current value is not restored: a fixture of the module may have run the command line before.
    """
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PILLOWS_LIMIT)


@pytest.fixture(autouse=True)
def plain_preset(monkeypatch):
    """Make neural-style the default preset, whose numbers the tests expect.

    The real default is tested by tests that name it.
    """
    monkeypatch.setattr("nst_jax.config.presets.DEFAULT_PRESET", "neural-style")


@pytest.fixture
def traced_work():
    """Let work leave a trace: every command that starts work makes the folder of JAX's cache."""
    set_program_cache("")
    jax.config.update("jax_enable_compilation_cache", True)
    yield
    set_program_cache(PROGRAMS if jax.config.read(QUICK.lower()) else "")


@pytest.fixture(scope="session")
def variables():
    """A VGG-19 with few channels and random kernels and biases, float32."""
    from nst_jax.models import init_variables

    tree = init_variables(jax.random.key(0), channels=TINY_CHANNELS)
    biases = np.random.default_rng(0)
    for layer in tree["params"].values():
        layer["bias"] = jax.numpy.asarray(
            biases.normal(scale=0.1, size=layer["bias"].shape), jax.numpy.float32
        )
    return tree


@pytest.fixture(scope="session")
def slim_variables(variables):
    """The small network up to conv3_1, with projections of three layers to VGG-19's channels."""
    rng = np.random.default_rng(5)

    def projection(channels, wide):
        kernel = rng.normal(size=(channels, wide)) / channels**0.5
        bias = rng.normal(scale=0.1, size=wide)
        return {"kernel": jax.numpy.float32(kernel), "bias": jax.numpy.float32(bias)}

    layers = {"relu1_1": (4, 64), "relu2_2": (6, 128), "relu3_1": (8, 256)}
    params = {name: layer for name, layer in variables["params"].items() if name <= "conv3_1"}
    projections = {
        pooling: {name: projection(*sizes) for name, sizes in layers.items()}
        for pooling in ("max", "average")
    }
    return {"params": params, "preprocessing": variables["preprocessing"], "lift": projections}


@pytest.fixture(scope="session")
def networks(slim_variables):
    """A small network with biases, and a slim one, in float64; tests also need ``x64``."""
    from nst_jax.models import init_variables

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        small = init_variables(jax.random.key(0), channels=(3, 4, 5, 6, 6))
        for layer in small["params"].values():
            layer["bias"] = layer["bias"] + rng.normal(scale=0.1, size=layer["bias"].shape)
        both = {"full": small, "slim": slim_variables}
        return jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x, np.float64)), both)


@pytest.fixture(scope="session")
def tiny_weights_file(variables, tmp_path_factory):
    """The small network as a canonical weights file, for the command line."""
    from nst_jax.weights import Weights, WeightsInfo, save_weights

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, Weights(variables, WeightsInfo(name="tiny", preprocessing="caffe")))
    return path


@pytest.fixture(scope="session")
def slim_file(slim_variables, tmp_path_factory):
    """The small slim network as a weights file."""
    from nst_jax.weights import Weights, WeightsInfo, save_weights

    path = tmp_path_factory.mktemp("weights") / "slim.safetensors"
    info = WeightsInfo(name="small-slim", preprocessing="caffe")
    return save_weights(path, Weights(slim_variables, info), half=True)


@pytest.fixture(scope="session")
def content():
    return smooth_image(36, 48, seed=1)


@pytest.fixture(scope="session")
def style():
    return smooth_image(40, 33, seed=2)


@pytest.fixture
def x64():
    """Enable double precision during a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["plain", "jit", "vmap"])
def variant(request):
    """Give a function that calls another one plainly, jitted, or under vmap with equal inputs."""

    def plain(function, *args):
        return function(*args)

    def jitted(function, *args):
        return jax.jit(function)(*args)

    def mapped(function, *args):
        batch = [np.stack([np.asarray(arg)] * 2) for arg in args]
        return jax.tree.map(lambda x: x[1], jax.vmap(function)(*batch))

    return {"plain": plain, "jit": jitted, "vmap": mapped}[request.param]


@pytest.fixture(scope="session")
def images_folder():
    """The folder of real images, from NST_JAX_IMAGES."""
    folder = os.environ.get("NST_JAX_IMAGES")
    if not folder:
        pytest.skip("NST_JAX_IMAGES does not name a folder of images")
    return Path(folder)


@pytest.fixture(scope="session")
def vgg19_weights():
    """The real weights of VGG-19."""
    from nst_jax.weights import load_weights

    return load_weights(os.environ["NST_JAX_WEIGHTS"])

"""Fixtures that the tests share: a small random network, images, strict JAX settings."""

import os
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

pytest.register_assert_rewrite("helpers")

# Before any array exists: four CPU devices for the tests of several devices, and every broadcast
# and large captured constant an error (warnings are errors, see pyproject.toml).
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 2_000)
jax.config.update("jax_enable_compilation_cache", False)  # commands in this process have none

QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def compile_quickly(quick):
    """Whether programs are compiled without most optimisations, here and in processes of tests.

    Most programs of the tests run once, on a few pixels: compiling them is what takes time.
    """
    os.environ[QUICK] = str(quick)
    if jax.config.read(QUICK.lower()) != quick:
        jax.config.update(QUICK.lower(), quick)
        jax.clear_caches()  # which know nothing of it


compile_quickly(True)

PILLOWS_LIMIT = Image.MAX_IMAGE_PIXELS
TINY_CHANNELS = (4, 6, 8, 10, 12)


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(items):
    seen = Counter()
    for item in items:
        name = item.nodeid.split("[")[0]
        seen[name] += 1
        if "sampled" in item.keywords and seen[name] > 1:
            item.add_marker("slow")
    # Last in each file, for programs are forgotten between the two ways of compiling.
    items.sort(key=lambda item: (str(item.path), "optimized" in item.keywords))
    missing = pytest.mark.skip(reason="NST_JAX_WEIGHTS does not name VGG-19 weights")
    no_gpu = pytest.mark.skip(reason="no GPU")
    for item in items:
        if item.get_closest_marker("weights") and not os.environ.get("NST_JAX_WEIGHTS"):
            item.add_marker(missing)
        if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
            item.add_marker(no_gpu)


@pytest.hookimpl(tryfirst=True)  # before its fixtures, also those of its module
def pytest_runtest_setup(item):
    compile_quickly(item.get_closest_marker("optimized") is None)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Forget a module's programs: those of all modules together fill the machine's memory."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def pixel_limit(monkeypatch):
    """Keep Pillow's limit, which the command line sets for its process.

    Not the one that is found: fixtures of whole modules may have run the command line before.
    """
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PILLOWS_LIMIT)


@pytest.fixture(autouse=True)
def plain_preset(monkeypatch):
    """Commands without a preset vary neural-style's numbers, which the tests know.

    The command line's own default is tested where it is named.
    """
    monkeypatch.setattr("nst_jax.config.presets.DEFAULT_PRESET", "neural-style")


@pytest.fixture
def traced_work():
    """Have work leave a trace: JAX's cache is on, whose folder a command makes as it begins."""
    jax.config.update("jax_enable_compilation_cache", True)
    yield
    jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(scope="session")
def variables():
    """A VGG-19 of a few channels with random kernels and biases, float32."""
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
    """The small network up to conv3_1 with lifts of three layers to VGG-19's channels."""
    rng = np.random.default_rng(5)

    def lift(channels, wide):
        kernel = rng.normal(size=(channels, wide)) / channels**0.5
        bias = rng.normal(scale=0.1, size=wide)
        return {"kernel": jax.numpy.float32(kernel), "bias": jax.numpy.float32(bias)}

    layers = {"relu1_1": (4, 64), "relu2_2": (6, 128), "relu3_1": (8, 256)}
    params = {name: layer for name, layer in variables["params"].items() if name <= "conv3_1"}
    lifts = {
        pooling: {name: lift(*sizes) for name, sizes in layers.items()}
        for pooling in ("max", "average")
    }
    return {"params": params, "preprocessing": variables["preprocessing"], "lift": lifts}


@pytest.fixture(scope="session")
def networks(slim_variables):
    """A small one with biases and a slim one in float64; tests with them ask for ``x64``."""
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


def smooth_image(height, width, *, seed):
    """An image of smooth random waves, float32 in [0, 1], ``[height, width, 3]``."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None] / 16
    frequency = generator.normal(size=(2, 1, 1, 3))
    waves = np.sin(y * frequency[0] + x * frequency[1] + generator.uniform(0, 6, size=3))
    noise = generator.uniform(-0.2, 0.2, size=(height, width, 3))
    return np.clip(0.5 + 0.3 * waves + noise, 0, 1).astype(np.float32)


@pytest.fixture(scope="session")
def content():
    return smooth_image(36, 48, seed=1)


@pytest.fixture(scope="session")
def style():
    return smooth_image(40, 33, seed=2)


@pytest.fixture
def x64():
    """Double precision within a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["plain", "jit", "vmap"])
def variant(request):
    """Call a function as it is, jitted, or under vmap over a batch of two equal inputs."""

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
    """The folder of real images that NST_JAX_IMAGES names."""
    folder = os.environ.get("NST_JAX_IMAGES")
    if not folder:
        pytest.skip("NST_JAX_IMAGES does not name a folder of images")
    return Path(folder)


@pytest.fixture(scope="session")
def vgg19_weights():
    """Real VGG-19 weights."""
    from nst_jax.weights import load_weights

    return load_weights(os.environ["NST_JAX_WEIGHTS"])

"""The sub-packages: which of them may import which, and what else each of them promises."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nst_jax

PACKAGE = Path(nst_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))

# What each package or single module may import; what it may import it may import through. All may
# import `errors` and `types`.
MAY_IMPORT = {
    "errors": [],
    "types": [],
    "config": [],
    "system": [],
    "color": ["config"],
    "models": ["config"],
    "images": ["system"],
    "optim": ["config"],
    "losses": ["models", "color"],
    "weights": ["models", "system"],
    "transfer": ["losses", "optim", "system"],
    "checkpoint": ["transfer", "weights"],
    "cli": ["checkpoint", "images"],
    "__main__": ["cli"],
}


def reachable(package):
    """What a package may import, itself among it."""
    return {package, "errors", "types"}.union(*map(reachable, MAY_IMPORT[package]))


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in FILES}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes):
    """Every module that nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in NAMES else node.module


def everywhere(path):
    return set(imported(ast.walk(tree(path))))


def at_import(path):
    """What a file imports when it is imported itself."""
    return set(imported(tree(path).body))


def roots(path):
    return {name.split(".")[0] for name in everywhere(path)}


def files_of(package):
    return [path for path in FILES if path.relative_to(PACKAGE).with_suffix("").parts[0] == package]


def test_every_file_has_its_place():
    homes = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES}
    assert homes - {"__init__", "_moved"} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_those_below(package):
    for path in files_of(package):
        packages = {name.split(".")[1] for name in everywhere(path) if name.startswith("nst_jax.")}
        assert packages <= reachable(package), path


def test_no_modules_import_each_other():
    graph = {
        name: {other for other in at_import(path) if other in NAMES and other != name}
        for name, path in NAMES.items()
    }
    TopologicalSorter(graph).prepare()  # raises where there is a cycle


@pytest.mark.parametrize("path", files_of("config"), ids=module_name)
def test_settings_need_only_the_standard_library(path):
    assert roots(path) <= sys.stdlib_module_names | {"nst_jax", "lazy_loader"}


@pytest.mark.parametrize("path", files_of("system"), ids=module_name)
def test_jax_is_imported_within_functions_of_the_system(path):
    assert not {name.split(".")[0] for name in at_import(path)} & {"jax", "jaxlib", "flax", "numpy"}


@pytest.mark.parametrize("path", files_of("images"), ids=module_name)
def test_images_need_no_jax(path):
    assert not roots(path) & {"jax", "jaxlib", "flax", "optax"}


CORE = ["color", "models", "optim", "losses", "transfer"]


@pytest.mark.parametrize("path", [p for name in CORE for p in files_of(name)], ids=module_name)
def test_the_core_knows_no_files(path):
    assert not roots(path) & {"PIL", "h5py", "requests", "safetensors", "rich", "tyro"}
    assert not roots(path) & {"pathlib", "os"}


def test_only_models_import_linen():
    users = {path.parent.name for path in FILES if "flax.linen" in everywhere(path)}
    assert users == {"models"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_hand_on_documented_names(package):
    module = importlib.import_module(f"nst_jax.{package}")
    assert "Contract:" in module.__doc__
    submodules = {path.stem for path in files_of(package)}
    assert not submodules & set(module.__all__), "a submodule would hide the function of its name"
    for name in module.__all__:
        value = getattr(module, name)
        assert not callable(value) or value.__doc__, name


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_lazy(package):
    code = (
        f"import sys, nst_jax.{package}\n"
        f"assert not [name for name in sys.modules if name.startswith('nst_jax.{package}.')]\n"
        "assert not {'jax', 'flax', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_public_names_are_few_and_listed():
    assert len(nst_jax.__all__) <= 30
    assert set(nst_jax.__all__) | {"__version__"} <= set(dir(nst_jax))
    assert callable(nst_jax.stylize) and nst_jax.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nst_jax.nothing


def test_old_names_stay_for_a_release():
    with pytest.warns(DeprecationWarning, match="nst_jax.losses.gram_matrix"):
        assert nst_jax.gram_matrix is nst_jax.losses.gram_matrix
    with pytest.warns(DeprecationWarning, match="nst_jax.weights.normalize_weights"):
        from nst_jax.normalize import normalize_weights
    assert normalize_weights is nst_jax.weights.normalize_weights
    with pytest.warns(DeprecationWarning, match="nst_jax.transfer.make_mesh"):
        assert nst_jax.parallel.make_mesh is nst_jax.transfer.make_mesh
    with pytest.raises(AttributeError, match="lanes.nothing"):
        nst_jax.lanes.nothing

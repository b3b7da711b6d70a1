"""The layout of the package: which sub-package may import which, and what each of them promises."""

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

# What each sub-package or module may import; it may also import what those may import. All may
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
CORE = ("color", "models", "optim", "losses", "transfer")


def reachable(package):
    """The sub-packages that a sub-package may import, including itself."""
    return {package, "errors", "types"}.union(*map(reachable, MAY_IMPORT[package]))


def package_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in FILES}


def imports(path, *, top_level=False):
    """The modules that a file imports, anywhere or at its top level only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in NAMES else node.module)
    return found


def test_every_file_belongs_to_a_listed_package():
    assert set(map(package_of, FILES)) - {"__init__", "_moved"} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_those_below_and_allowed_libraries(package):
    for path in (path for path in FILES if package_of(path) == package):
        found = imports(path)
        own = {name.split(".")[1] for name in found if name.startswith("nst_jax.")}
        assert own <= reachable(package), path
        roots = {name.split(".")[0] for name in found}
        if package == "config":
            assert roots <= sys.stdlib_module_names | {"nst_jax", "lazy_loader"}, path
        if package == "images":
            assert not roots & {"jax", "jaxlib", "flax", "optax"}, path
        if package == "system":  # imports JAX inside functions only
            top = {name.split(".")[0] for name in imports(path, top_level=True)}
            assert not top & {"jax", "jaxlib", "flax", "numpy"}, path
        if package in CORE:  # functions of arrays, without files
            forbidden = {"PIL", "h5py", "requests", "safetensors", "rich", "tyro", "pathlib", "os"}
            assert not roots & forbidden, path
        assert package == "models" or "flax.linen" not in found, path


def test_no_modules_import_each_other():
    graph = {
        name: {other for other in imports(path, top_level=True) if other in NAMES and other != name}
        for name, path in NAMES.items()
    }
    TopologicalSorter(graph).prepare()  # raises if there is a cycle


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_document_their_public_names(package):
    module = importlib.import_module(f"nst_jax.{package}")
    assert "Contract:" in module.__doc__
    submodules = {path.stem for path in FILES if package_of(path) == package}
    assert not submodules & set(module.__all__), "a submodule would hide the function of its name"
    for name in module.__all__:
        value = getattr(module, name)
        assert not callable(value) or value.__doc__, name


def test_packages_are_lazy():
    code = (
        "import importlib, sys\n"
        f"for name in {PACKAGES}:\n"
        "    importlib.import_module(f'nst_jax.{name}')\n"
        "    loaded = [m for m in sys.modules if m.startswith(f'nst_jax.{name}.')]\n"
        "    assert not loaded, loaded\n"
        "assert not {'jax', 'flax', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_are_few_and_listed():
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

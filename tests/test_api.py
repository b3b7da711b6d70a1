"""The conventions of the public functions and the direction of the imports."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nst_jax

PACKAGE = Path(nst_jax.__file__).parent

# Each module may import those on its level or below; the core (up to batch) knows no files.
LEVELS = [
    {"errors"},
    {"layers", "files", "allocator", "standard_streams", "threads"},
    {"interrupt", "devices"},
    {"layer_factors", "types", "pairing"},
    {"loss_factors", "loss_config"},
    {"config_checks"},
    {"config"},
    {"preset_type"},
    {"tool_presets"},
    {"paper_presets", "tutorial_presets"},
    {"own_presets"},
    {"presets"},
    {"lift", "guides", "shares", "color_matching", "pyramid", "windows"},
    {"color", "tiling", "rows", "pooling"},
    {"winograd", "coordinates"},
    {"convolution"},
    {"vgg", "losses", "lbfgs", "inputs", "mask_checks"},
    {"moments", "gaussians", "histograms", "content_losses", "variation"},
    {"style_term"},
    {"content_term"},
    {"objective", "optimizers"},
    {"solver"},
    {"loop", "parallel"},
    {"memory"},
    {"choices"},
    {"plan_words"},
    {"memory_plan"},
    {"problem", "scales"},
    {"position", "scale_state"},
    {"transfer"},
    {"lane_solver", "lane_memory"},
    {"lane_plans"},
    {"lanes"},
    {"batch"},
    {"stored"},
    {"torch_file"},
    {"canonical"},
    {"weight_forms"},
    {"convert"},
    {"fetch"},
    {"weights", "verify"},
    {"activation_scale"},
    {"color_profiles"},
    {"picture_depth", "picture_output"},
    {
        "images",
        "messages",
        "progress",
        "region_plan",
        "manifest",
    }
    | {"distributed"},
    {"mask_files", "contact_sheet", "batch_inputs", "checkpoint"},
    {"options", "weights_options"},
    {"batch_options"},
    {"command_line"},
    {"call", "report"},
    {"checkpoint_records"},
    {"job_checkpoint"},
    {"job_inputs", "region_inputs"},
    {"job_records"},
    {"job_plan", "job_outputs"},
    {"smaller_ways"},
    {"job_run"},
    {"job"},
    {"batch_records"},
    {"batch_width"},
    {"batch_job", "batch_checks"},
    {"stylize_command", "weights_command", "sweep_values", "batch_command", "estimate_command"},
    {"sweep_command", "resume_command"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
CORE = set().union(*LEVELS[: LEVEL["batch"] + 1]) - {
    *("files", "interrupt", "allocator", "devices", "standard_streams", "threads")
}


def imports(path):
    """Every module that a file imports, at the top or within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "nst_jax":
                yield from (f"nst_jax.{alias.name}" for alias in node.names)


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    for name in imports(PACKAGE / f"{module}.py"):
        imported = name.removeprefix("nst_jax.")
        if name.startswith("nst_jax.") and imported in LEVEL:
            assert LEVEL[imported] <= LEVEL[module], f"{module} imports {imported}"


@pytest.mark.parametrize("module", sorted(CORE))
def test_the_core_knows_no_files(module):
    roots = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")}
    assert not roots & {"PIL", "h5py", "requests", "safetensors", "rich", "tyro", "pathlib", "os"}


def test_only_one_file_imports_linen():
    users = [module for module in MODULES if "flax.linen" in imports(PACKAGE / f"{module}.py")]
    assert users == ["vgg"]


def test_settings_need_only_the_standard_library():
    allowed = sys.stdlib_module_names | {"nst_jax"}
    promised = {
        module
        for module in MODULES
        if "Standard library only" in " ".join((docstring(PACKAGE / f"{module}.py") or "").split())
    }
    assert {"config", "presets", "layers", "interrupt"} <= promised
    for module in promised:
        roots = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")}
        assert roots <= allowed


@pytest.mark.parametrize("name", nst_jax.__all__)
def test_public_names_are_documented_and_options_keyword_only(name):
    value = getattr(nst_jax, name)
    if not callable(value):
        return
    assert inspect.getdoc(value), f"{name} has no docstring"
    if inspect.isclass(value) and issubclass(value, Exception):
        return
    for parameter in inspect.signature(value).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            # Linen makes the signature of its modules.
            keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert keyword_only or inspect.isclass(value), f"{name}: {parameter}"
        assert parameter.name not in ("rng", "prng"), f"{name}: randomness is called key"


def test_the_public_names_are_few_and_listed():
    assert len(nst_jax.__all__) <= 32
    assert set(nst_jax.__all__) <= set(dir(nst_jax))
    assert set(nst_jax._HOMES) == set(nst_jax.__all__)
    assert callable(nst_jax.stylize)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nst_jax.nothing


@pytest.mark.parametrize(
    "arguments", [["--help"], ["stylize", "--help"], ["presets"], ["weights", "--help"]]
)
def test_help_does_not_import_jax(arguments):
    code = (
        "import sys\n"
        "from nst_jax.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert not {'jax', 'flax', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

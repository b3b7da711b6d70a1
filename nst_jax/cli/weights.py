"""The commands ``nst-jax weights fetch | convert | normalize | verify | list``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nst_jax.cli.batch_files import expand
from nst_jax.cli.messages import log
from nst_jax.cli.options import Convert, Fetch, ListWeights, Normalize, Verify
from nst_jax.errors import InputError
from nst_jax.system.files import check_writable, expand_home
from nst_jax.weights.convert import convert_file
from nst_jax.weights.fetch import fetch
from nst_jax.weights.load import find_weights, list_weights, load_weights, save_weights
from nst_jax.weights.verify import verify_weights


def manage_weights(action: Fetch | Convert | Normalize | Verify | ListWeights) -> int:
    """Run ``nst-jax weights``; see ``options.WeightsOptions``.

    Returns:
      The exit code; 1 if a check of ``verify`` failed but the weights can be used.

    Raises:
      InputError: for files that cannot be used, and for failed downloads.
    """
    match action:
        case Fetch():
            with _download_display(action.source) as (show, say):
                path = fetch(action.source, show=show, say=say)
            print(path)
        case Convert():
            _check_name(action.output)
            convert_file(
                action.source,
                action.output,
                preprocessing=action.preprocessing,
                overwrite=action.overwrite,
            )
            print(action.output)
        case Normalize():
            _normalize(action)
            print(action.output)
        case Verify():
            path = find_weights(path=action.file)
            if path is None:
                raise InputError("no weights on this machine: run 'nst-jax weights fetch'")
            print(path)
            checks = verify_weights(path)
            for check in checks:
                if not check.ok and check is checks[-1] and check.name in ("form", "arrays"):
                    raise InputError(check.detail)  # the file cannot be used at all
                print(f"{'ok    ' if check.ok else 'FAILED'}  {check.name}: {check.detail}")
            return 0 if all(check.ok for check in checks) else 1
        case ListWeights():
            for place in list_weights():
                print(f"{place.where:10}  {place.name:18}  {place.path}  {place.detail}")
    return 0


@contextmanager
def _download_display(
    name: str,
) -> Iterator[tuple[Callable[[int, int | None], None], Callable[[str], None]]]:
    """The callbacks ``show`` and ``say`` of `fetch`: a progress bar on a terminal, and lines."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(name, total=None, visible=False)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        def say(text: str) -> None:
            bar.console.print(f"nst-jax: {text}", markup=False, highlight=False, soft_wrap=True)

        yield show, say


def _check_name(output: Path) -> None:
    if output.suffix != ".safetensors":
        raise InputError(f"{output} is not the name of a weights file: expected .safetensors")


def _normalize(action: Normalize) -> None:
    # Imported here so that the other commands do not wait for JAX.
    from nst_jax.cli.checks import check_size
    from nst_jax.images.read import image_shape, limit_pixels, load_image
    from nst_jax.weights.normalize import check_large_enough, normalize_weights

    # Checked first, because the rest takes minutes with many images.
    _check_name(action.output)
    check_writable(
        expand_home(action.output), overwrite=action.overwrite, advice="give --overwrite"
    )
    check_size(action.size)
    limit_pixels(action.max_megapixels)
    paths = [source.path for source in expand(action.images, what="sample")]
    for path in paths:
        check_large_enough(*image_shape(path, size=action.size), what=str(path))
    weights = load_weights(action.source)
    images = (load_image(path, size=action.size) for path in paths)
    normal = normalize_weights(weights, images, pooling=action.pooling)
    save_weights(action.output, normal, overwrite=action.overwrite)
    normalized = normal.info.normalized
    if normalized and normalized.inactive:
        channels = ", ".join(f"{count} of {layer}" for layer, count in normalized.inactive.items())
        log(
            f"channels that are not active in these images keep their scale: {channels}; more "
            "images leave fewer of them"
        )

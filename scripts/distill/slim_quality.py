"""Compare the quality and speed of slim weights with the full VGG-19.

    python scripts/distill/slim_quality.py --teacher vgg19.h5 \
        --slim weights/vgg19-slim.safetensors \
        --contents A.jpg ... --styles B.jpg ... --output out/slim

Every content image is stylized with every style image, by the full network and by each slim one,
with the same settings. With L the objective of the full network,

    r = (L(slim's image) - L(full's image)) / (L(content) - L(full's image))

so r = 0 is as good as the full network, and 1 as bad as no style at all. OUTPUT gets the images,
one sheet (content, style, full, slim ...), quality.json and, for several slim files, a plot of
quality against speed. The images of the full network stay there and are reused. ``--ship FILE``
writes the first slim file with these figures in its header.
"""

import hashlib
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from nst_jax.cli.record import write_json
from nst_jax.config import Config, get_preset
from nst_jax.errors import InputError
from nst_jax.images import load_image, to_uint8
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import prepare_kernels
from nst_jax.optim import make_solver, run, set_learning_rate
from nst_jax.system import keep_freed_memory
from nst_jax.system.files import check_writable
from nst_jax.transfer import stylize
from nst_jax.transfer.planner import make_config_optimizer
from nst_jax.transfer.problem import compute_targets
from nst_jax.weights import load_weights, save_weights


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare slim weights with the full VGG-19.

    Attributes:
      teacher: Weights of the full network.
      slim: Slim weights, one or several files.
      contents: Content images.
      styles: Style images; all pairs are compared.
      output: Folder for the results.
      preset: Preset with the objective and the optimiser.
      size: Longer side in pixels.
      steps: Steps of each run.
      speed_size: Longer side in pixels at which steps are timed; 0 for no timing.
      speed_rounds: Rounds of four steps; the networks take turns.
      ship: Write the first slim file with its figures here.
    """

    teacher: Path
    slim: tuple[Path, ...]
    contents: tuple[Path, ...]
    styles: tuple[Path, ...]
    output: Path
    preset: str = "neural-style"
    size: int = 256
    steps: int = 100
    speed_size: int = 512
    speed_rounds: int = 5
    ship: Path | None = None


@partial(jax.jit, static_argnums=0)
def _value(loss: Any, variables: Any, image: Any, targets: Any) -> Any:
    return loss.head(loss.statistics(variables, image, targets), targets)[0]


def step_seconds(networks: dict[str, Any], options: Options, config: Config) -> dict[str, float]:
    """Median seconds per step of each network, timed in turn in one process."""
    content = jnp.asarray(load_image(options.contents[0], size=options.speed_size))
    style = jnp.asarray(load_image(options.styles[0], size=options.speed_size))
    loss = make_loss(config.loss)
    solver = make_solver(loss, make_config_optimizer(config))
    winograd = jax.default_backend() == "cpu"
    runs = {}
    for name, variables in networks.items():
        targets = compute_targets(loss, variables, content, [style], loss_weights(config), {})
        prepared = jax.jit(
            partial(prepare_kernels, convolution="winograd" if winograd else "direct")
        )(variables)
        state = jax.jit(solver.init)(content, prepared, targets)
        state = state._replace(opt_state=set_learning_rate(state.opt_state, config))
        runs[name] = [run(solver, state, prepared, targets, num_steps=4)[0], prepared, targets]
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(options.speed_rounds):
        for name, (state, prepared, targets) in runs.items():
            jax.block_until_ready(state)
            started = time.perf_counter()
            state, _ = run(solver, state, prepared, targets, num_steps=4)
            runs[name][0] = jax.block_until_ready(state)
            seconds[name].append((time.perf_counter() - started) / 4)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(options: Options) -> dict[str, Any]:
    """Stylize all pairs with all networks; print the table and write the images."""
    config = get_preset(options.preset).config.but(steps=options.steps)
    slim = {path.stem: load_weights(path).variables for path in options.slim}
    if len(slim) < len(options.slim) or "full" in slim:
        raise InputError("expected slim files with different names, none of them 'full'")
    loaded = load_weights(options.teacher)
    teacher = loaded.variables
    options.output.mkdir(parents=True, exist_ok=True)
    loss = make_loss(config.loss)
    rows, cells = [], []
    print(f"{'content':18}{'style':26}{'network':24}{'loss':>12}{'r':>8}", flush=True)
    for content_path, style_path in product(options.contents, options.styles):
        content, style = (
            load_image(path, size=options.size) for path in (content_path, style_path)
        )
        targets = compute_targets(
            loss, teacher, jnp.asarray(content), [jnp.asarray(style)], loss_weights(config), {}
        )
        value = partial(_value, loss, teacher, targets=targets)
        pair = f"{content_path.stem}__{style_path.stem}"
        settings = f"{config} {loaded.info.sha256}".encode()
        key = hashlib.sha256(settings + content.tobytes() + style.tobytes()).hexdigest()
        cached = options.output / f"{pair}__full_{key[:12]}.npy"
        if cached.exists():
            full = np.load(cached)
        else:
            full = np.asarray(stylize(teacher, content, style, config=config).image)
            np.save(cached, full)
        start, best = float(value(content)), float(value(full))
        print(f"{content_path.stem:18}{style_path.stem:26}{'content':24}{start:12.4g}{1:8.3f}")
        print(f"{'':44}{'full':24}{best:12.4g}{0:8.3f}")
        row: dict[str, Any] = {"pair": pair, "content": start, "full": best, "slim": {}}
        cells += [content, style, full]
        for name, variables in slim.items():
            image = np.asarray(stylize(variables, content, style, config=config).image)
            Image.fromarray(to_uint8(image)).save(options.output / f"{pair}__{name}.png")
            reached = float(value(image))
            ratio = (reached - best) / (start - best)
            row["slim"][name] = {"loss": reached, "r": ratio}
            print(f"{'':44}{name:24}{reached:12.4g}{ratio:8.3f}", flush=True)
            cells.append(image)
        rows.append(row)
    sheet(cells, columns=3 + len(slim), side=options.size).save(options.output / "sheet.png")
    result: dict[str, Any] = {"preset": options.preset, "size": options.size}
    result |= {"steps": options.steps, "pairs": rows, "slim": {}}
    networks = {"full": teacher} | slim
    seconds = step_seconds(networks, options, config) if options.speed_size else {}
    for name in slim:
        ratios = [row["slim"][name]["r"] for row in rows]
        summary = {"median": statistics.median(ratios), "worst": max(ratios)}
        if seconds:
            summary |= {"seconds": seconds[name], "speedup": seconds["full"] / seconds[name]}
        result["slim"][name] = summary
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in summary.items()))
    if seconds:
        print(f"full: {seconds['full']:.3f} s per step at {options.speed_size} px")
    return result


def sheet(photos: list[np.ndarray], *, columns: int, side: int, gap: int = 6) -> Image.Image:
    """Lay out images row by row on white, each fitted into a square."""
    rows = -(-len(photos) // columns)
    paper = Image.new("RGB", (columns * (side + gap), rows * (side + gap)), "white")
    for index, photo in enumerate(photos):
        image = Image.fromarray(to_uint8(photo))
        image.thumbnail((side, side))
        x = index % columns * (side + gap) + (side - image.width) // 2
        y = index // columns * (side + gap) + (side - image.height) // 2
        paper.paste(image, (x, y))
    return paper


def plot_curve(result: dict[str, Any], path: Path) -> None:
    """Plot quality against speed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    for name, summary in result["slim"].items():
        axes.errorbar(
            summary["speedup"],
            summary["median"],
            [[0], [summary["worst"] - summary["median"]]],
            fmt="o",
            capsize=3,
        )
        axes.annotate(
            name,
            (summary["speedup"], summary["median"]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xlabel="speed relative to the full network", ylabel="r: median, bar to the worst")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.3)  # room for the names
    figure.savefig(path, dpi=120)


def ship(result: dict[str, Any], source: Path, output: Path) -> None:
    """Write slim weights with the figures in the header."""
    weights = load_weights(source)
    summary = result["slim"][source.stem]
    pairs = [
        {key: row[key] for key in ("pair", "content", "full")} | row["slim"][source.stem]
        for row in result["pairs"]
    ]
    keys = ("preset", "size", "steps")
    figures = {key: result[key] for key in keys} | summary | {"pairs": pairs}
    training = json.loads(weights.info.training) | {"figures": figures}
    info = replace(weights.info, training=json.dumps(training))
    save_weights(output, weights._replace(info=info), overwrite=True, half=True)


def check_ship(options: Options) -> None:
    """Check before the comparison that the first slim file can be shipped.

    Raises:
      InputError: if it has no record of its training, or the output cannot be written.
    """
    if options.ship is not None:
        check_writable(options.ship, overwrite=True)
        if not load_weights(options.slim[0]).info.training:
            raise InputError(f"{options.slim[0]} has no record of its training: train it first")


def main() -> int:
    options = tyro.cli(Options)
    try:
        check_ship(options)
        result = compare(options)
        write_json(options.output / "quality.json", result)
        if options.ship is not None:
            ship(result, options.slim[0], options.ship)
    except InputError as error:
        print(f"slim_quality: error: {error}", file=sys.stderr)
        return 2
    if options.speed_size and len(options.slim) > 1:
        plot_curve(result, options.output / "curve.png")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())

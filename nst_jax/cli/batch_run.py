"""The computation of ``nst-jax batch``: images are prefetched, computed in batches, written behind.

Also chooses how many images to compute at once.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

import jax

from nst_jax.cli.batch_files import Item
from nst_jax.cli.batch_records import BatchJob, Finished, Loaded, job_fingerprint, skip_item, write
from nst_jax.cli.fallback import (
    memory_errors_to_input_errors,
    rerun_alone,
    run_with_fallback,
    should_rerun,
)
from nst_jax.cli.messages import log
from nst_jax.cli.planning import (
    batch_memory,
    batch_that_fits,
    batch_too_large_error,
    image_memory,
    images_in_words,
)
from nst_jax.errors import InputError
from nst_jax.images.read import load_rgba
from nst_jax.system.memory import free_bytes, process_memory
from nst_jax.transfer.batch import each_result, follows_content, problem_maker, run_batch
from nst_jax.transfer.batch_programs import CONTENT_FIELDS, Element
from nst_jax.transfer.problem import Problem, check_inputs
from nst_jax.transfer.sharding import make_mesh
from nst_jax.transfer.single import run_inputs
from nst_jax.transfer.types import Execution, LoopMemory, Progress
from nst_jax.types import Guidance

PREFETCH_PIXELS = 2**25  # at most, in all prefetched images: 0.4 GB

STYLE_CACHE_SIZE = 64  # style images, and style targets, that stay in memory

WRITERS = 4  # threads

MAX_PER_DEVICE = 64  # images at once on an accelerator, unless --batch-size asks for more

Sizes = Mapping[Item, tuple[int, int]]

OnFailure = Callable[[Item, InputError], None]


class Prepared(NamedTuple):
    """An item with its images read and its targets computed."""

    loaded: Loaded
    problem: Problem


class Hooks(NamedTuple):
    """Callbacks of a running job.

    Attributes:
      show: called with the number of finished images of the current batch, including fractions.
      stop_signal: returns the signal that requested a stop, or None.
      on_failure: called with an item that cannot be computed, and why.
    """

    show: Callable[[float], None]
    stop_signal: Callable[[], int | None]
    on_failure: OnFailure


def run_job(
    job: BatchJob,
    sizes: Sizes,
    *,
    show: Callable[[float], None],
    stop_signal: Callable[[], int | None],
) -> Counter[str]:
    """Compute and write the images of a job.

    Args:
      job: what all images share.
      sizes: the items and the heights and widths of their outputs, grouped by size.
      show: called with the number of finished images, including fractions.
      stop_signal: returns the signal that requested a stop, or None; called between chunks of
        steps.

    Returns:
      The number of images for each status, "done", "diverged" or "failed"; "stopped" is 1 if the
      job was stopped.

    Raises:
      InputError: if not even one image fits into memory, or results cannot be written.
    """
    tally: Counter[str] = Counter()

    def on_failure(item: Item, error: InputError) -> None:
        skip_item(job, item, error)
        tally["failed"] += 1

    hooks = Hooks(lambda part: show(sum(tally.values()) + part), stop_signal, on_failure)
    with ThreadPoolExecutor(1) as reader, background_writer(job) as write_one:
        try:
            loaded = load_items(job, sizes, reader, on_failure=on_failure)
            for finished in compute(job, loaded, sizes, hooks=hooks):
                write_one(finished)
                tally[finished.result.status] += 1
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
    if sum(tally.values()) < len(sizes):
        tally["stopped"] = 1
    return tally


def load_items(
    job: BatchJob, sizes: Sizes, reader: Executor, *, on_failure: OnFailure
) -> Iterator[Loaded]:
    """Read the items in their order, prefetching some in the background."""
    largest = max(height * width for height, width in sizes.values())
    ahead = min(MAX_PER_DEVICE, max(2, PREFETCH_PIXELS // largest))
    for item, future in prefetch(list(sizes), partial(load_item, job), reader, ahead=ahead):
        try:
            loaded = future.result()
            if loaded.content.shape[:2] != sizes[item]:
                raise InputError(
                    f"the size of {item.content} has changed since the batch started: run the "
                    "command again for it"
                )
        except InputError as error:
            on_failure(item, error)
        else:
            yield loaded


def prefetch(
    items: Sequence[Item], load: Callable[[Item], Loaded], reader: Executor, *, ahead: int
) -> Iterator[tuple[Item, Future[Loaded]]]:
    """Iterate over items and the futures of loading them, ``ahead`` of them in advance."""
    remaining = iter(items)
    futures = deque((item, reader.submit(load, item)) for item in islice(remaining, ahead))
    while futures:
        yield futures.popleft()
        futures.extend((item, reader.submit(load, item)) for item in islice(remaining, 1))


def load_item(job: BatchJob, item: Item) -> Loaded:
    """Read the content and the styles of an item, and check them.

    Raises:
      InputError: if a file cannot be read, or does not fit the settings.
    """
    image = load_rgba(item.content, size=job.size)
    styles, guidance = [job.style(index) for index in item.styles], Guidance(blend=job.blend)
    inputs = check_inputs(image.rgb, styles, config=job.config, guidance=guidance)
    return Loaded(item, image.rgb, image.alpha, inputs, job_fingerprint(job, item))


def prepare_group(
    group: Iterable[Loaded], make: Callable[..., Problem], *, on_failure: OnFailure
) -> Iterator[Prepared]:
    """Compute the targets of each item."""
    for loaded in group:
        with memory_errors_to_input_errors(loaded.content.shape):
            try:
                problem = make(loaded.inputs, loaded.item.styles)
            except InputError as error:
                on_failure(loaded.item, error)
                continue
        yield Prepared(loaded, problem)


def compute(
    job: BatchJob, loaded: Iterable[Loaded], sizes: Sizes, *, hooks: Hooks
) -> Iterator[Finished]:
    """Compute the images, as many at once as fit into memory.

    Args:
      job: what all images share.
      loaded: the items, grouped by size.
      sizes: heights and widths of all items.
      hooks: called meanwhile.

    Raises:
      InputError: if not even one image fits into memory.
    """
    devices, counts = jax.local_devices(), Counter(sizes.values())
    free: int | None = None
    process: int | None = None
    make = problem_maker(
        job.weights.variables,
        config=job.config,
        execution=Execution(mesh=make_mesh(devices=devices) if len(devices) > 1 else None),
        keep=STYLE_CACHE_SIZE,
    )
    started = False
    for shape, group in groupby(loaded, key=lambda one: one.content.shape):
        waiting = prepare_group(group, make, on_failure=hooks.on_failure)
        first = next(waiting, None)
        if first is None:
            continue
        # Measure once: the process keeps the memory that a batch has freed, and the next one
        # uses it.
        free = free_bytes(devices[0]) if free is None else free
        process = process_memory() if process is None else process
        with memory_errors_to_input_errors(shape):
            memory = image_memory(first.problem, free=free)
        largest = choose_batch_size(job, memory, shape=shape, devices=devices, free=free)
        batch_size = even_batch_size(largest, count=counts[shape[:2]])
        if memory is not None:
            log_batch_memory(
                first.problem,
                memory,
                batch_size=batch_size,
                devices=devices,
                free=free,
                process=process,
            )
        waiting = chain([first], waiting)
        while batch := list(islice(waiting, batch_size)):
            if started and hooks.stop_signal() is not None:
                return  # requested during the last step of the batch before
            started = True
            finished, used = compute_batch(job, batch, batch_size, devices=devices, hooks=hooks)
            # If a batch ran out of memory, assume so much less for the following sizes.
            free, batch_size = free and free * used // batch_size, used
            for one in finished:
                if should_rerun(one.result, steps=job.config.steps):
                    one = compute_alone(job, one, hooks=hooks)
                if one.result.status == "stopped":
                    return
                yield one


def compute_batch(
    job: BatchJob,
    batch: Sequence[Prepared],
    batch_size: int,
    *,
    devices: Sequence[Any],
    hooks: Hooks,
) -> tuple[list[Finished], int]:
    """Compute images of one size together, halving the batch size whenever memory runs out.

    Returns:
      The images, and the last batch size.

    Raises:
      InputError: if not even one image fits into memory.
    """
    finished: list[Finished] = []
    shared = job.same_styles and not follows_content(job.config)
    key = jax.random.key(job.seed)

    def callback(progress: Progress, *, count: int) -> bool:
        hooks.show(len(finished) + count * progress.step / progress.steps)
        return hooks.stop_signal() is None

    def attempt(batch_size: int) -> int:
        while len(finished) < len(batch):
            part = batch[len(finished) : len(finished) + batch_size]
            mesh = make_mesh(devices=devices[:batch_size]) if len(devices) > 1 else None
            # ``width`` and ``distinct`` give a smaller last batch the program of the others.
            result = run_batch(
                [Element(one.problem, job.config, key) for one in part],
                execution=Execution(mesh=mesh),
                width=batch_size,
                distinct=CONTENT_FIELDS if shared else (*CONTENT_FIELDS, "style"),
                callback=partial(callback, count=len(part)),
            )
            # JAX computes asynchronously, so running out of memory may surface only in this copy.
            results = each_result(jax.device_get(result))
            finished.extend(
                Finished(one.loaded, one_result, len(part))
                for one, one_result in zip(part, results, strict=True)
            )
            if "stopped" in result.status:
                break
        return batch_size

    def half(batch_size: int) -> int | None:
        smaller = half_batch_size(batch_size, devices=devices)
        if smaller:
            log(f"out of memory, continuing with batches of {smaller}")
        return smaller or None

    shape = batch[0].loaded.content.shape
    used = run_with_fallback(attempt, batch_size, next_option=half, shape=shape)
    return finished, used


def compute_alone(job: BatchJob, diverged: Finished, *, hooks: Hooks) -> Finished:
    """Compute an image that diverged in a batch again, as ``nst-jax stylize`` does."""
    loaded = diverged.loaded
    run = partial(
        run_inputs,
        job.weights.variables,
        loaded.inputs,
        config=job.config,
        key=jax.random.key(job.seed),
    )
    with memory_errors_to_input_errors(loaded.content.shape):
        result = rerun_alone(run, name=loaded.item.output.name, stop_signal=hooks.stop_signal)
    return Finished(loaded, result, 1, rerun=True)


@contextmanager
def background_writer(job: BatchJob) -> Iterator[Callable[[Finished], None]]:
    """Give a function that writes an image in a background thread; wait for all at the end.

    The function blocks while more than two batches are waiting to be written.

    Raises:
      InputError: if an image cannot be written.
    """
    writes: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as writers:

        def write_one(finished: Finished) -> None:
            writes.append(writers.submit(write, job, finished))
            while len(writes) > 2 * finished.batch_size:
                writes.popleft().result()

        try:
            yield write_one
        finally:
            for future in writes:
                future.result()


def choose_batch_size(
    job: BatchJob,
    memory: LoopMemory | None,
    *,
    shape: Sequence[int],
    devices: Sequence[Any],
    free: int | None,
) -> int:
    """Choose how many images to compute at once.

    Args:
      job: what all images share.
      memory: what one image needs, or None if it is not known.
      shape: height and width of the images.
      devices: the devices.
      free: free memory of each device in bytes, or None if it is not known.

    Raises:
      InputError: if not even one image fits into memory.
    """
    # CPU devices share one memory, and more than one image per device gains nothing. Accelerators
    # have one memory each, and are faster with several images at once.
    cpu = devices[0].platform == "cpu"
    memories, most = (1, len(devices)) if cpu else (len(devices), MAX_PER_DEVICE * len(devices))
    wanted = most if job.batch_size == "auto" else job.batch_size
    wanted = min(wanted, most) if cpu else wanted
    if free is None or memory is None:
        return wanted
    fitting = memories * batch_that_fits(memory, free, at_most=-(-wanted // memories))
    if not fitting:
        raise batch_too_large_error(memory, free, width=shape[1], height=shape[0])
    return min(wanted, fitting)


def log_batch_memory(
    problem: Problem,
    memory: LoopMemory,
    *,
    batch_size: int,
    devices: Sequence[Any],
    free: int | None,
    process: int,
) -> None:
    """Log the memory that a batch needs: on accelerators, of the device with the most images."""
    cpu = devices[0].platform == "cpu"
    images = batch_size if cpu else -(-batch_size // len(devices))
    total = batch_memory(memory, images, networks=batch_size if cpu else 1)
    log(images_in_words(problem, total, free=free, process=process, images=images))


def even_batch_size(largest: int, *, count: int) -> int:
    """The smallest batch size that needs no more batches than the largest one allowed.

    Every batch is filled up to this size, so a smaller one wastes less in the last batch.

    >>> even_batch_size(64, count=65), even_batch_size(64, count=3)
    (33, 3)
    """
    return -(-count // -(-count // largest))


def half_batch_size(batch_size: int, *, devices: Sequence[Any]) -> int:
    """Halve the number of images in each memory; 0 if there was only one. CPU devices share one."""
    memories = 1 if devices[0].platform == "cpu" else len(devices)
    return memories * (-(-batch_size // memories) // 2)

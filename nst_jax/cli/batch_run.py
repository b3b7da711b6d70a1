"""The work of the command ``batch``: images are read ahead, computed together, written behind.

How many are computed at once is chosen here, too.
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
from nst_jax.cli.batch_records import BatchJob, Loaded, Made, job_fingerprint, leave_out, write
from nst_jax.cli.fallback import explaining, may_gain_alone, once_more_alone, with_fallback
from nst_jax.cli.messages import log
from nst_jax.cli.planning import batch_that_fits, image_memory, images_in_words, refusal, times
from nst_jax.errors import InputError
from nst_jax.images.read import load_rgba
from nst_jax.system.memory import free_bytes, own_memory
from nst_jax.transfer.batch import each_result, follows_content, problem_maker, run_batch
from nst_jax.transfer.batch_programs import OF_CONTENT, Element
from nst_jax.transfer.problem import Problem, check_inputs
from nst_jax.transfer.sharding import make_mesh
from nst_jax.transfer.single import run_inputs
from nst_jax.transfer.types import Execution, LoopMemory, Progress
from nst_jax.types import Guidance

AHEAD_PIXELS = 2**25  # that are read before they are needed: 0.4 GB

KEPT_STYLES = 64  # style images and Gram matrices that stay in memory

WRITERS = 4

Sizes = Mapping[Item, tuple[int, int]]

Fail = Callable[[Item, InputError], None]


class Prepared(NamedTuple):
    """An image to make, read, and what is computed of it."""

    loaded: Loaded
    problem: Problem


class Watch(NamedTuple):
    """What looks on while images are computed.

    Attributes:
      show: called with the number of images done of those that are computed, also in fractions.
      asked: gives the signal that asked to stop, or None.
      fail: called with an image that cannot be made, and why.
    """

    show: Callable[[float], None]
    asked: Callable[[], int | None]
    fail: Fail


def run_job(
    job: BatchJob,
    sizes: Sizes,
    *,
    show: Callable[[float], None],
    asked: Callable[[], int | None],
) -> Counter[str]:
    """Make the images, those of one size after another together.

    Args:
      job: what they have in common.
      sizes: the images and their heights and widths, those of one size after another.
      show: called with the number of images done, also in fractions.
      asked: gives the signal that asked to stop, or None; called between chunks of steps.

    Returns:
      How many images ended how: "done", "diverged", "failed"; "stopped" is 1 if the job was.

    Raises:
      InputError: where the memory does not suffice, and where results cannot be written.
    """
    tally: Counter[str] = Counter()

    def fail(item: Item, error: InputError) -> None:
        leave_out(job, item, error)
        tally["failed"] += 1

    watch = Watch(lambda part: show(sum(tally.values()) + part), asked, fail)
    with ThreadPoolExecutor(1) as reader, written_behind(job) as write_one:
        try:
            loaded = read(job, sizes, reader, fail=fail)
            for made in compute(job, loaded, sizes, watch=watch):
                write_one(made)
                tally[made.result.status] += 1
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
    if sum(tally.values()) < len(sizes):
        tally["stopped"] = 1
    return tally


def read(job: BatchJob, sizes: Sizes, reader: Executor, *, fail: Fail) -> Iterator[Loaded]:
    """The images, some of which are read before they are asked for."""
    largest = max(height * width for height, width in sizes.values())
    ahead = min(AT_MOST, max(2, AHEAD_PIXELS // largest))
    for item, future in read_ahead(list(sizes), partial(read_item, job), reader, ahead=ahead):
        try:
            loaded = future.result()
            if loaded.content.shape[:2] != sizes[item]:
                words = "has another size than at the start of the batch: run again for it"
                raise InputError(f"{item.content} {words}")
        except InputError as error:
            fail(item, error)
        else:
            yield loaded


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Loaded], reader: Executor, *, ahead: int
) -> Iterator[tuple[Item, Future[Loaded]]]:
    """Items with what is read of them, so many of which are read before they are asked for."""
    coming = iter(items)
    futures = deque((item, reader.submit(read, item)) for item in islice(coming, ahead))
    while futures:
        yield futures.popleft()
        futures.extend((item, reader.submit(read, item)) for item in islice(coming, 1))


def read_item(job: BatchJob, item: Item) -> Loaded:
    """Read a content and its styles.

    Raises:
      InputError: for files that cannot be read.
    """
    image = load_rgba(item.content, size=job.size)
    styles, guidance = [job.style(place) for place in item.styles], Guidance(blend=job.blend)
    inputs = check_inputs(image.rgb, styles, config=job.config, guidance=guidance)
    return Loaded(item, image.rgb, image.alpha, inputs, job_fingerprint(job, item))


def prepare_group(
    group: Iterable[Loaded], make: Callable[..., Problem], *, fail: Fail
) -> Iterator[Prepared]:
    """What is computed of each image before its first step."""
    for loaded in group:
        with explaining(loaded.content.shape):
            try:
                problem = make(loaded.inputs, loaded.item.styles)
            except InputError as error:
                fail(loaded.item, error)
                continue
        yield Prepared(loaded, problem)


def compute(
    job: BatchJob, loaded: Iterable[Loaded], sizes: Sizes, *, watch: Watch
) -> Iterator[Made]:
    """The images, made as many at once as the memory has room for; fewer where it was asked for.

    Raises:
      InputError: where the memory does not suffice for one.
    """
    devices, counts = jax.local_devices(), Counter(sizes.values())
    free: int | None = None
    process: int | None = None
    make = problem_maker(
        job.weights.variables,
        config=job.config,
        execution=Execution(mesh=make_mesh(devices=devices) if len(devices) > 1 else None),
        keep=KEPT_STYLES,
    )
    begun = False
    for shape, group in groupby(loaded, key=lambda one: one.content.shape):
        waiting = prepare_group(group, make, fail=watch.fail)
        first = next(waiting, None)
        if first is None:
            continue
        # Measured once: what a run has freed stays with the process, and serves the next.
        free = free_bytes(devices[0]) if free is None else free
        process = own_memory() if process is None else process
        with explaining(shape):
            memory = image_memory(first.problem, free=free)
        most = choose_width(job, memory, shape=shape, devices=devices, free=free)
        width = even_width(most, count=counts[shape[:2]])
        if memory is not None:
            room = {"free": free, "process": process}
            log_batch_size(first.problem, memory, width=width, devices=devices, **room)
        waiting = chain([first], waiting)
        while batch := list(islice(waiting, width)):
            if begun and watch.asked() is not None:
                return  # at the last step of the batch before
            begun = True
            made, used = compute_batch(job, batch, width, devices=devices, watch=watch)
            free, width = free and free * used // width, used
            for one in made:
                if may_gain_alone(one.result, steps=job.config.steps):
                    one = compute_alone(job, one, watch=watch)
                if one.result.status == "stopped":
                    return
                yield one


def compute_batch(
    job: BatchJob, batch: Sequence[Prepared], width: int, *, devices: Sequence[Any], watch: Watch
) -> tuple[list[Made], int]:
    """Images made together, of one size; where the memory does not suffice, half as many at once.

    Returns:
      The images, and how many were made at once in the end.

    Raises:
      InputError: where the memory does not suffice for one.
    """
    made: list[Made] = []
    shared = job.same_styles and not follows_content(job.config)
    key = jax.random.key(job.seed)

    def callback(progress: Progress, *, count: int) -> bool:
        watch.show(len(made) + count * progress.step / progress.steps)
        return watch.asked() is None

    def attempt(width: int) -> int:
        while len(made) < len(batch):
            part = batch[len(made) : len(made) + width]
            mesh = make_mesh(devices=devices[:width]) if len(devices) > 1 else None
            result = run_batch(
                [Element(one.problem, job.config, key) for one in part],
                execution=Execution(mesh=mesh),
                width=width,
                distinct=OF_CONTENT if shared else (*OF_CONTENT, "style"),
                callback=partial(callback, count=len(part)),
            )
            results = each_result(jax.device_get(result))  # here, where memory is seen to
            made.extend(Made(one.loaded, own, len(part)) for one, own in zip(part, results))
            if "stopped" in result.status:
                break
        return width

    def smaller(width: int) -> int | None:
        half = half_width(width, devices=devices)
        if half:
            log(f"out of memory, going on by {half}")
        return half or None

    shape = batch[0].loaded.content.shape
    used = with_fallback(attempt, width, smaller=smaller, shape=shape)
    return made, used


def compute_alone(job: BatchJob, made: Made, *, watch: Watch) -> Made:
    """An image that diverged among others, made once more as ``nst-jax stylize`` makes it."""
    loaded = made.loaded
    work = partial(
        run_inputs,
        job.weights.variables,
        loaded.inputs,
        config=job.config,
        key=jax.random.key(job.seed),
    )
    with explaining(loaded.content.shape):
        result = once_more_alone(work, name=loaded.item.output.name, asked=watch.asked)
    return Made(loaded, result, 1, alone=True)


@contextmanager
def written_behind(job: BatchJob) -> Iterator[Callable[[Made], None]]:
    """Give a function that has images written by threads; at the end all are.

    Raises:
      InputError: where one cannot be written.
    """
    writes: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as writers:

        def write_one(made: Made) -> None:
            writes.append(writers.submit(write, job, made))
            while len(writes) > 2 * made.together:
                writes.popleft().result()

        try:
            yield write_one
        finally:
            for future in writes:
                future.result()


AT_MOST = 64  # images at once on an accelerator, unless more are asked for


def choose_width(
    job: BatchJob,
    memory: LoopMemory | None,
    *,
    shape: Sequence[int],
    devices: Sequence[Any],
    free: int | None,
) -> int:
    """How many images to compute at once, each of which takes so much memory.

    Raises:
      InputError: where the memory does not suffice for one.
    """
    # CPU devices share one memory, and more than one image for each gains nothing.
    cpu = devices[0].platform == "cpu"
    holders, most = (1, len(devices)) if cpu else (len(devices), AT_MOST * len(devices))
    wanted = most if job.batch_size == "auto" else job.batch_size
    wanted = min(wanted, most) if cpu else wanted
    if free is None or memory is None:
        return wanted
    fitting = holders * batch_that_fits(memory, free, at_most=-(-wanted // holders))
    if not fitting:
        raise refusal(memory, free, width=shape[1], height=shape[0])
    return min(wanted, fitting)


def log_batch_size(
    problem: Problem,
    memory: LoopMemory,
    *,
    width: int,
    devices: Sequence[Any],
    free: int | None,
    process: int,
) -> None:
    """Say what so many images of one size take together; of several memories, in the fullest."""
    cpu = devices[0].platform == "cpu"
    images = width if cpu else -(-width // len(devices))
    together = times(memory, images, networks=width if cpu else 1)
    words = images_in_words(problem, together, free=free, process=process, images=images)
    log(words)


def even_width(most: int, *, count: int) -> int:
    """The least width that takes as few batches as the largest one allowed: less is filled up.

    >>> even_width(64, count=65), even_width(64, count=3)
    (33, 3)
    """
    return -(-count // -(-count // most))


def half_width(width: int, *, devices: Sequence[Any]) -> int:
    """Half as many images in each memory, or 0 where there was one: CPU devices share theirs."""
    holders = 1 if devices[0].platform == "cpu" else len(devices)
    return holders * (-(-width // holders) // 2)

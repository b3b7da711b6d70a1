"""Small weights, and writers of every file format that need no PyTorch."""

import io
import resource
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nst_jax.config import CONVS
from nst_jax.weights.canonical import Record, write_canonical
from nst_jax.weights.convert import FIRST_FILTER, PREPROCESSING, expected_shapes

SMALL = (4, 4, 5, 5, 6)  # channels of the blocks
MAGIC = 0x1950A86A20F9469CFC6C
FEATURES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)


def make_arrays(*, network=None, channels=SMALL, seed=0):
    """Random flat arrays, with a known network's first filter if ``network`` names one."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in expected_shapes(channels).items()
    }
    if network:
        first = np.array(FIRST_FILTER[network], np.float32)
        arrays["conv1_1/kernel"][..., 0] = first.transpose(1, 2, 0)
    return arrays


def flip(arrays):
    """The same network for BGR input."""
    kernel = arrays["conv1_1/kernel"]
    return {**arrays, "conv1_1/kernel": np.ascontiguousarray(kernel[:, :, ::-1])}


def write_keras(path, arrays, *, naming="kernel", top=False, **storage):
    import h5py

    with h5py.File(path, "w") as file:
        for conv in CONVS:
            block = f"block{conv[4]}_conv{conv[6]}"
            for part, letter in (("kernel", "W"), ("bias", "b")):
                name = {
                    "W": f"{block}/{block}_{letter}_1:0",
                    "kernel": f"{block}/{part}:0",
                    "nested": f"{block}/{block}/{part}:0",
                    "model": f"model_weights/{block}/{block}/{part}:0",
                }[naming]
                file.create_dataset(name, data=arrays[f"{conv}/{part}"], **storage)
        if top:
            file["fc1/fc1/kernel:0"] = np.zeros((7, 3), np.float32)
            file["predictions/predictions/bias:0"] = np.zeros(3, np.float32)


def write_matconvnet(path, arrays, *, generation="new", transposed=False, mean=None, packed=False):
    from scipy.io import savemat

    cells = []
    for conv in CONVS:
        kernel = arrays[f"{conv}/kernel"]
        kernel = kernel.swapaxes(0, 1) if transposed else kernel
        bias = arrays[f"{conv}/bias"].reshape(1, -1)
        layer = {"name": conv, "type": "conv", "stride": np.ones((1, 2)), "pad": np.ones((1, 4))}
        if generation == "filters":
            layer |= {"filters": kernel, "biases": bias}
        else:
            pair = np.empty((1, 2), object)
            pair[0, 0], pair[0, 1] = kernel, bias.T if generation == "new" else bias
            layer["weights"] = pair
        cells += [layer, {"name": conv.replace("conv", "relu"), "type": "relu"}]
    cells.append({"name": "fc6", "type": "conv", "weights": np.zeros((1, 1))})
    layers = np.empty((1, len(cells)), object)
    layers[0, :] = cells
    mean = np.array([123.68, 116.779, 103.939] if mean is None else mean)
    if generation == "new":
        data = {"layers": layers, "meta": {"normalization": {"averageImage": mean}}}
    else:
        average = np.broadcast_to(mean, (224, 224, 3))
        data = {"layers": layers, "normalization": {"averageImage": average}, "classes": {}}
    with open(path, "wb") as file:
        savemat(file, data, do_compression=packed)


def torch_state(arrays, *, names="features", prefix=""):
    """PyTorch's names and axis order."""
    state = {}
    for index, conv in zip(FEATURES, CONVS, strict=True):
        layer = f"{prefix}features.{index}" if names == "features" else f"{prefix}{conv}"
        state[f"{layer}.weight"] = arrays[f"{conv}/kernel"].transpose(3, 2, 0, 1)
        state[f"{layer}.bias"] = arrays[f"{conv}/bias"]
    return state


def write_safetensors(path, state):
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)


def write_own(path, arrays, *, network="caffe"):
    record = Record(name="test", preprocessing=PREPROCESSING[network])
    write_canonical(Path(path), arrays, record)


# Pickles by hand: each function returns the opcodes that push one value onto the stack.


def p_text(text):
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def p_int(value):
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + data


def p_tuple(*items):
    return b"(" + b"".join(items) + b"t"


def p_global(module, name):
    return f"c{module}\n{name}\n".encode()


def p_call(function, *arguments):
    return function + p_tuple(*arguments) + b"R"


def p_dict(items):
    return b"}(" + b"".join(p_text(key) + value for key, value in items.items()) + b"u"


def p_whole(value):
    return b"\x80\x02" + value + b"."


def p_storage(key, length, *, kind="FloatStorage", view=None):
    pid = [p_text("storage"), p_global("torch", kind), p_text(key), p_text("cpu"), p_int(length)]
    if view is not None:
        pid.append(view)
    return p_tuple(*pid) + b"Q"


def p_tensor(storage, shape, strides, *, offset=0):
    return p_call(
        p_global("torch._utils", "_rebuild_tensor_v2"),
        storage,
        p_int(offset),
        p_tuple(*map(p_int, shape)),
        p_tuple(*map(p_int, strides)),
        b"\x89",
        p_call(p_global("collections", "OrderedDict")),
    )


def p_state(state, *, legacy=False):
    view = b"N" if legacy else None
    return p_dict(
        {
            name: p_tensor(
                p_storage(str(key), array.size, view=view),
                array.shape,
                [stride // 4 for stride in np.ascontiguousarray(array).strides],
            )
            for key, (name, array) in enumerate(state.items())
        }
    )


def write_zip(path, value, blobs, *, byteorder=b"little", compression=zipfile.ZIP_STORED):
    """Write a .pth in the zip layout, from the opcodes of its value and its storages' bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", p_whole(value))
        archive.writestr("archive/byteorder", byteorder)
        for key, blob in blobs.items():
            archive.writestr(f"archive/data/{key}", blob)


def write_legacy(path, value, blobs, *, little_endian=True, itemsize=4):
    """Write the same in the legacy layout."""
    file = io.BytesIO()
    flag = b"\x88" if little_endian else b"\x89"
    keys = b"](" + b"".join(p_text(key) for key in blobs) + b"e"
    head = (p_int(MAGIC), p_int(1001), p_dict({"little_endian": flag}), value, keys)
    for part in head:
        file.write(p_whole(part))
    for blob in blobs.values():
        file.write(struct.pack("<q", len(blob) // itemsize) + blob)
    Path(path).write_bytes(file.getvalue())


def blobs_of(state):
    return {str(key): np.ascontiguousarray(a).tobytes() for key, a in enumerate(state.values())}


def write_pth(path, state, *, legacy=False):
    write = write_legacy if legacy else write_zip
    write(path, p_state(state, legacy=legacy), blobs_of(state))


def write_all(folder, *, arrays=None):
    """Write one network to a small file of every format and layout; returns paths by label."""
    arrays = make_arrays(network="caffe") if arrays is None else arrays
    bgr = flip(arrays)
    paths = {}

    def put(label, write, *values, **options):
        paths[label] = folder / f"{label}.bin"
        write(paths[label], *values, **options)

    for naming in ("W", "kernel", "nested", "model"):
        put(f"keras-{naming}", write_keras, bgr, naming=naming, top=naming == "nested")
    for generation in ("old", "filters", "new"):
        put(f"mat-{generation}", write_matconvnet, arrays, generation=generation)
    put("keras-gzip", write_keras, bgr, compression="gzip", shuffle=True)
    put("mat-transposed", write_matconvnet, arrays, transposed=True)
    put("mat-compressed", write_matconvnet, arrays, packed=True)
    put("pth-zip", write_pth, torch_state(bgr))
    put("pth-legacy", write_pth, torch_state(bgr), legacy=True)
    put("pth-gatys", write_pth, torch_state(bgr, names="conv"))
    put("pth-prefix", write_pth, torch_state(bgr, prefix="module."))
    put("safetensors", write_safetensors, torch_state(bgr))
    put("safetensors-rgb", write_safetensors, torch_state(arrays))
    put("canonical", write_own, arrays)
    return paths


@contextmanager
def largest_file(size):
    """Imitate a full disk: no file of this process can grow beyond ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

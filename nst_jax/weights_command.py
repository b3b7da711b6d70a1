"""The commands ``nst-jax weights fetch | convert | verify | list``."""

from nst_jax.convert import convert_file
from nst_jax.errors import InputError
from nst_jax.fetch import fetch
from nst_jax.options import Convert, Fetch, ListWeights, Verify
from nst_jax.verify import verify_weights
from nst_jax.weights import find_weights, list_weights


def manage_weights(action: Fetch | Convert | Verify | ListWeights) -> int:
    """Run ``nst-jax weights``; see ``options.Weights``.

    Returns:
      The exit code; 1 where a check of ``verify`` failed.

    Raises:
      InputError: for files that cannot be used, and failed downloads.
    """
    match action:
        case Fetch():
            print(fetch(action.source))
        case Convert():
            if action.output.suffix != ".safetensors":
                raise InputError(f"{action.output} is no name for weights: expected .safetensors")
            convert_file(
                action.source,
                action.output,
                preprocessing=action.preprocessing,
                overwrite=action.overwrite,
            )
            print(action.output)
        case Verify():
            path = find_weights(path=action.file)
            if path is None:
                raise InputError("no weights on this machine: run 'nst-jax weights fetch'")
            print(path)
            checks = verify_weights(path)
            for check in checks:
                print(f"{'ok    ' if check.ok else 'FAILED'}  {check.name}: {check.detail}")
            return 0 if all(check.ok for check in checks) else 1
        case ListWeights():
            for place in list_weights():
                print(f"{place.where:10}  {place.name:18}  {place.path}  {place.detail}")
    return 0

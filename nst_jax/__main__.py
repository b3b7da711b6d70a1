"""The entry point of ``nst-jax`` and of ``python -m nst_jax``."""

import signal
import sys

# During the imports, Ctrl-C ends the process at once instead of printing a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    """Run the command line and return the exit code, see ``app.main``."""
    from nst_jax.cli import app
    from nst_jax.system.memory import keep_freed_memory

    keep_freed_memory()  # for the whole process, so before other threads allocate
    return app.main()


if __name__ == "__main__":
    sys.exit(main())

"""The command ``nst-jax``, also as ``python -m nst_jax``."""

import signal
import sys

# While the rest is imported, Ctrl-C ends the process at once rather than by a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    """Run the command line, see ``app.main``."""
    from nst_jax.cli import app
    from nst_jax.system.memory import keep_freed_memory

    keep_freed_memory()  # a setting of the whole process, before other threads allocate
    return app.main()


if __name__ == "__main__":
    sys.exit(main())

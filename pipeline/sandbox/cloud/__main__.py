"""`python -m pipeline.sandbox.cloud`: the cloud in this process."""

from __future__ import annotations

import sys

from pipeline.sandbox.cloud.options import parse
from pipeline.sandbox.cloud.serving import serve


def main() -> int:
    """Serve; 0 after SIGTERM, 2 where an option is wrong or a port is taken."""
    options = parse()
    try:
        serve(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"The cloud cannot start: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

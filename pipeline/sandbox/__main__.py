"""`python -m pipeline.sandbox`: the server in this process."""

from __future__ import annotations

import sys

from pipeline.sandbox.options import parse
from pipeline.sandbox.serving import serve


def main() -> int:
    """Serve; 0 after SIGTERM, 2 where an option is wrong or the port is taken."""
    options = parse()
    try:
        serve(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"The sandbox cannot start: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m cyxnet` is the `cyx` command."""

import sys

from cyxnet.cli import main

if __name__ == "__main__":
    sys.exit(main())

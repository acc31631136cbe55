"""`python -m decoct_runtime --model FOLDER INPUT...`."""

import sys

from decoct_runtime.predict import main

sys.exit(main())

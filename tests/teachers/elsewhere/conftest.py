"""Puts this folder on the path, so that worker processes find the nets and teachers of these tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

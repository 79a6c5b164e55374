"""Tests that need the extra models are collected where it is installed: .venv-models (tools/make-models-venvs.sh)."""

from __future__ import annotations

import importlib.util

from tests.kit.parts import MODELS

collect_ignore = [] if importlib.util.find_spec("torch") else [*MODELS]

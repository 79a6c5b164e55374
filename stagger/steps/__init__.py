"""The steps that ship with stagger, by the names that pipeline files use."""

from __future__ import annotations

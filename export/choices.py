"""Choices of an export that a user names, apart from everything that needs torch."""

from typing import Literal

VaePrecision = Literal["auto", "fp16", "fp32", "bf16"]
"""Precision of the VAE; `auto` follows the other networks, and falls back to fp32 where fp16 does not hold it."""

ParityDepth = Literal["full", "quick", "off"]
"""How thoroughly components are compared with torch (`latentrt.export.checks.parity.case_sizes`)."""

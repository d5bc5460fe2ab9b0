"""What vLLM says when it does not start or go on, as errors with an exit code each."""

from __future__ import annotations

from collections.abc import Collection

from blendkit.errors import BlendkitError, NoInputError, UsageError, out_of_memory
from blendkit.models.pretrained import reason


class EngineTooLarge(BlendkitError):
    """An engine's weights or its cache do not fit; no smaller batch helps (75)."""

    exit_code = 75


def fault_of_start(error: Exception, spec: str, settings: Collection[str]) -> BlendkitError:
    """Why the engine does not start."""
    if isinstance(error, BlendkitError):
        return error
    said = reason(error)
    if isinstance(error, ImportError):
        return UsageError(f"vLLM cannot be imported: {said}")
    # Where it does not take a setting that was given, that is the fault, and not the model or the machine.
    refused = isinstance(error, TypeError) or "validation error" in str(error)
    if refused and any(setting in str(error) for setting in settings):
        return UsageError(f"-m {spec}: {said}")
    if _memory(error):
        return EngineTooLarge(f"{spec}: not enough memory: {said}")
    return NoInputError(f"{spec}: vLLM does not start: {said}")


def fault_of(error: Exception, spec: str) -> BlendkitError:
    """Why the engine does not go on."""
    if isinstance(error, BlendkitError):
        return error
    if _memory(error):
        return EngineTooLarge(f"{spec}: not enough memory: {reason(error)}")
    return NoInputError(f"{spec}: vLLM fails as it computes: {reason(error)} (see it whole with --debug)")


def _memory(error: Exception) -> bool:
    # Of its cache of keys and values vLLM says in a ValueError that it does not fit.
    return out_of_memory(error) or (isinstance(error, ValueError | RuntimeError) and "memory" in str(error).lower())

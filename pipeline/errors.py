"""The errors that this pipeline raises on purpose.

Each says what happened (`cause`) and what to do (`advice`); neither holds a secret or resource content.
`exit_code` is what the command line exits with.
"""

from __future__ import annotations


class ExportError(Exception):
    """The root: anything that the pipeline refuses or fails to do, in words that are safe to print."""

    exit_code = 1

    def __init__(self, cause: str, advice: str = "") -> None:
        super().__init__(f"{cause}. {advice}" if advice else cause)
        self.cause = cause
        self.advice = advice

    def __reduce__(self) -> tuple[type[ExportError], tuple[str, str]]:
        # Step workers hand errors over by pickle; the default would lose the advice.
        return type(self), (self.cause, self.advice)


class ConfigError(ExportError):
    """The configuration, an option or a file that it names is wrong."""

    exit_code = 2


class ServerRefused(ExportError):
    """A server answered, and its answer is no."""

    exit_code = 3


class AuthError(ServerRefused):
    """No token, or a token that is not accepted."""


class KickoffRejected(ServerRefused):
    """The kick-off request was answered with a final error."""


class JobGone(ServerRefused):
    """The status URL is unknown (404, 410): only a new kick-off helps (protocol fact 24)."""


class JobFailed(ServerRefused):
    """The server ended the job with an error."""


class DownloadRefused(ServerRefused):
    """A file of the manifest is not handed out, or must not be asked for."""


class VerificationFailed(ExportError):
    """What arrived is not what the manifest promised; nothing was published."""

    exit_code = 4


class StillRunning(ExportError):
    """The export, or another run's work on it, is not over yet."""

    exit_code = 5


class Unreachable(ExportError):
    """No usable answer: network, timeout or a passing server error. Trying again may help."""

    exit_code = 6

    def __init__(self, cause: str, advice: str = "", retry_after: float | None = None) -> None:
        super().__init__(cause, advice)
        self.retry_after = retry_after
        """Seconds the server asked to wait, where it said so."""

    def __reduce__(self) -> tuple[type[Unreachable], tuple[str, str, float | None]]:  # type: ignore[override]
        return type(self), (self.cause, self.advice, self.retry_after)


class LakeError(ExportError):
    """The lake cannot be read or written, or holds something damaged."""

    exit_code = 7

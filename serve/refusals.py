"""Why a request is not taken in, and when to come again."""

from latentrt.runtime import LatentRTError


class QueueFullError(LatentRTError):
    """So many requests wait already. `seconds`: when to come again."""

    def __init__(self, waiting: int, seconds: int):
        super().__init__(f"{waiting} requests wait already; come again in {seconds} s")
        self.seconds = seconds


class UnavailableError(LatentRTError):
    """The server takes no requests now: it is going down, or its worker is not ready. `seconds`: when to come again."""

    def __init__(self, why: str, seconds: int):
        super().__init__(f"{why}; come again in {seconds} s")
        self.seconds = seconds

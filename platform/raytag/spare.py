"""How many requests may be asked a second time while the first try is under way.

Where something may be gone, asking it and another both is the way to an answer in time (J. Dean,
L. A. Barroso, The Tail at Scale, CACM 56(2), 2013: hedged requests). Where everything is merely
slow it is more work for who has too much. So there is a budget, as gRPC throttles retries
(proposal A6).
"""


class Spare:
    """Starts with all it can save, which is ``most``; each request saves up ``share`` of one."""

    def __init__(self, share: float, most: int) -> None:
        self._share = share
        self._most = most
        self._left = float(most)

    def asked(self) -> None:
        """A request is asked for the first time."""
        self._left = min(self._left + self._share, self._most)

    def take(self) -> bool:
        """Whether there is one, which is then used."""
        if self._left < 1:
            return False
        self._left -= 1
        return True

"""Work done in a forked child."""

import os
import signal
import time
from collections.abc import Callable


def works_in_a_forked_child(work: Callable[[], None]) -> bool:
    """Whether ``work`` returns, within a minute, in a child of this process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
